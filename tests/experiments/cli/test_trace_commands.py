"""Commands on traces, and docs/traces.md: what it tells users to type works, in its order."""

import base64
import json
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import make_trace, random_experts
from tracekit.importers import IMPORTERS
from tracekit.importers.fields import EXPERTS, MODEL, NAMES, PHASES
from tracekit.trace import Trace

DOCS = Path(__file__).parents[3] / "docs" / "traces.md"
COMMANDS = re.findall(r"^    (tracekit .+)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
ROUTE = """\
# route_trace v1
# model=tiny arch=tiny n_layer=1 n_expert=4 n_expert_used=1
# layer=0 expert_bytes=100
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,3,1.0,0,100
0,1,1,0,0,1,1.0,0,100
"""


def sources(folder: Path) -> None:
    """A small file for every import in the document; 48 layers of top-8, as its SGLang example says."""
    chosen = random_experts(np.random.default_rng(0), 12, 48, 128, 8)
    usage = {"prompt_tokens": 5, "completion_tokens": 8}
    vllm = {"model": "m", "choices": [{"routed_experts": chosen.tolist()}], "usage": usage}
    (folder / "responses.json").write_text(json.dumps(vllm))
    flat = base64.b64encode(chosen.astype("<i4").tobytes()).decode()
    sglang = {"model": "m", "choices": [{}], "sglext": {"routed_experts": flat}, "usage": usage}
    (folder / "responses.jsonl").write_text(json.dumps(sglang) + "\n")
    line = next(text for text in DOCS.read_text(encoding="utf-8").splitlines() if text.startswith('    {"request"'))
    (folder / "router.jsonl").write_text(line.strip() + "\n")
    rows = [{"conversation": token, "layer": 3, "ids": [token, 9]} for token in range(2)]
    pl.DataFrame(rows).write_parquet(folder / "router.parquet")
    (folder / "route.bin").write_bytes(struct.pack("<4s7i", b"MBLT", 1, 8, 3, 2, 1, 5, 0))
    choice = {"layer_0": {"selected_experts": [31, 21], "selected_probs": [0.75, 0.25]}}
    (folder / "gpqa.json").write_text(json.dumps({"router_data": [{"token_178": choice}, {"token_179": choice}]}))
    (folder / "moe_trace.csv").write_text("layer,expert\n" + "0,1\n0,2\n1,3\n1,0\n" * 3)
    (folder / "route.csv").write_text(ROUTE)
    np.savez(folder / "routing.npz", experts=chosen[:, :2, :2])
    (folder / "training_data_eamc").mkdir()
    for number in (0, 1):
        text = 'Layer ID,Batch Number,Token,Activated Expert IDs\n1,0,I,"[3, 1]"\n2,0,I,"[0, 2]"\n'
        (folder / "training_data_eamc" / f"prompt_{number}_data.csv").write_text(text)


def test_the_commands_of_the_document(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources(tmp_path)
    assert len(COMMANDS) >= 15 and {command.split()[2] for command in COMMANDS if " import " in command} == {
        "auto",
        *IMPORTERS,
    }
    for command in COMMANDS:
        code, out, err = call(*shlex.split(command)[1:])
        assert (code, err) == (0, ""), command
        assert out
        if "--json" in command:
            json.loads(out)
    assert Trace.open("both.trace").tokens == 24 and Trace.open("second.trace").manifest.requests == 1
    assert "100.00 %" in call("diff", "vllm.trace", "sglang.trace")[1]


def test_the_document_lists_the_words_of_router_dumps() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for meaning, names in (*NAMES.items(), ("of a header", (*MODEL, *EXPERTS))):
        words = ", ".join(f"`{name}`" for name in names)
        assert any(row.startswith(f"| {meaning.replace('_', ' ')} | {words} | ") for row in rows), meaning
    phases = next(row for row in rows if row.startswith("| phase |"))
    assert all(f"`{name}`" in phases for name in PHASES if isinstance(name, str))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["merge", "a.trace", "--output", "c.trace"], ["two traces or more"]),
        (["merge", "a.trace", "none.trace", "--output", "c.trace"], ["none.trace"]),
        (["merge", "a.trace", "b.trace", "--output", "c.trace"], ["top_k differ", "a.trace", "b.trace"]),
        (["merge", "a.trace", "a.trace", "--output", "a.trace"], ["a.trace exists"]),
        (["merge", "a.trace", "a.trace"], ["--output"]),
        (["slice", "a.trace", "--output", "c.trace"], ["--requests, --steps or --phase"]),
        (["slice", "a.trace", "--requests", "7:", "--output", "c.trace"], ["has no rows of requests 7:"]),
        (["slice", "a.trace", "--steps", "x", "--output", "c.trace"], ["FIRST:END"]),
        (["diff", "a.trace", "b.trace"], ["top_k differ"]),
        (["diff", "a.trace", "none.trace"], ["none.trace"]),
        (["synthetic", "--zipf", "5", "--output", "c.trace"], ["lower zipf"]),
        (["synthetic", "--tokens", "0", "--output", "c.trace"], ["tokens is 0"]),
        (["synthetic", "--output", "a.trace"], ["a.trace exists"]),
        (["import", "vlm", "a.trace", "--output", "c.trace"], ["did you mean 'vllm'"]),
        (["import", "vllm", "a.trace", "--output", "c.trace"], ["not a file"]),
        (["import", "npz", "x.npz", "--top-k", "2", "--output", "c.trace"], ["leave --top-k out"]),
    ],
)
def test_mistakes_are_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    make_trace(tmp_path / "a.trace", random_experts(rng, 10), num_experts=8)
    make_trace(tmp_path / "b.trace", random_experts(rng, 10, top_k=3), num_experts=8)
    assert_one_line(*call(*arguments), *words)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.trace", "b.trace"]


def test_notes_of_an_import_reach_info(call: Call, tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), 100, 2, 8, 2)
    experts[:40] = experts[0]
    np.savez(tmp_path / "warm.npz", experts=experts)
    assert "first 40 tokens" in call("import", "npz", tmp_path / "warm.npz", "--output", tmp_path / "warm.trace")[1]
    assert "note: steps 0:40: the first 40 tokens" in call("info", tmp_path / "warm.trace")[1]
    notes = json.loads(call("info", tmp_path / "warm.trace", "--json")[1])["notes"]
    assert any("warm-up" in note for note in notes)


def test_an_anonymised_trace_replays_as_before(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    experts = random_experts(rng, 200, 3, 16, 2)
    make_trace(tmp_path / "a.trace", experts, num_experts=16, logits=rng.random((200, 3, 16)), token_id=np.arange(200))
    call("anonymise", tmp_path / "a.trace", "--seed", 3, "--output", tmp_path / "b.trace")
    for policy in ("lru", "lfu", "belady", "sieve"):
        found = [
            json.loads(call("replay", tmp_path / name, "--policy", policy, "--capacity", "5/layer", "--json")[1])
            for name in ("a.trace", "b.trace")
        ]
        assert found[0]["hits"] == found[1]["hits"] > 0
