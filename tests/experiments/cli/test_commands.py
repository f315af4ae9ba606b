"""Every command: help with an example, JSON, and one line on stderr with exit code 2 for whatever is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import COMMANDS
from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import make_trace, random_experts


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A small trace of 40 decode steps, 3 layers, top-2 of 6."""
    experts = random_experts(np.random.default_rng(0), tokens=40, layers=3, experts=6, top_k=2)
    make_trace(tmp_path / "t.trace", experts, num_experts=6, expert_bytes=[1000] * 3, expert_params=[500] * 3)
    return tmp_path / "t.trace"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_json(call: Call, name: str) -> None:
    code, out, _ = call(name, "--help")
    assert code == 0
    assert "Example: tracekit" in " ".join(out.split())
    assert "--json" in out


def test_root_help_lists_every_command(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", ["replay", "curve", "info"])
def test_no_such_trace(call: Call, tmp_path: Path, command: str) -> None:
    more = ["--capacity", "2/layer"] if command == "replay" else []
    assert_one_line(*call(command, tmp_path / "none.trace", *more), "none.trace")


@pytest.mark.parametrize("command", ["replay", "curve", "info"])
def test_not_a_trace(call: Call, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("hello")
    more = ["--capacity", "2/layer"] if command == "replay" else []
    assert_one_line(*call(command, tmp_path / "file", *more), "file")


def test_truncated_shard(call: Call, trace: Path) -> None:
    (shard,) = trace.glob("routing-*.parquet")
    shard.write_bytes(shard.read_bytes()[:-20])
    assert_one_line(*call("replay", trace, "--capacity", "2/layer"), shard.name)


def test_wrong_version(call: Call, trace: Path) -> None:
    manifest = json.loads((trace / "manifest.json").read_text())
    (trace / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    assert_one_line(*call("replay", trace, "--capacity", "2/layer"), "99")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--capacity", "2/layer", "--policy", "lruu"], ["lruu", "did you mean 'lru'"]),
        (["--capacity", "2/layer", "--prefetch", "gaet"], ["gaet", "did you mean 'gate'"]),
        (["--capacity", "lots"], ["lots", "4/layer"]),
        (["--capacity", "9/layer"], ["9/layer", "6"]),
        (["--capacity", "-3"], ["-3"]),
        (["--capacity", "140%"], ["140%"]),
        ([], ["--capacity"]),
        (["--capacity", "2/layer", "--hardware", "rtx306"], ["rtx306", "did you mean 'rtx3060'"]),
        (["--capacity", "2/layer", "--hardware", "t4", "--model-shape", "mixtral"], ["mixtral", "did you mean"]),
        (["--capacity", "2/layer", "--weights", "hqq-5bit"], ["hqq-5bit"]),
        (["--capacity", "2/layer", "--prefetch", "gate"], ["lookahead", "--lookahead 1"]),
        (["--capacity", "2/layer", "--policy", "./none.py:Mine"], ["none.py"]),
        (["--plan", "none.toml"], ["none.toml"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
def test_bad_options_of_replay(call: Call, trace: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_line(*call("replay", trace, *arguments), *words)


def test_unknown_command(call: Call) -> None:
    assert_one_line(*call("replya"), "replay")


def test_unknown_keys_in_a_plan(call: Call, trace: Path, tmp_path: Path) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text('[cache]\ncapacity = "2/layer"\nsize = 3\n')
    assert_one_line(*call("replay", trace, "--plan", plan), "p.toml", "size")


def test_replay_json_has_what_it_promises(call: Call, trace: Path) -> None:
    arguments = ["replay", trace, "--capacity", "2/layer", "--hardware", "rtx3060", "--model-shape", "mixtral-8x7b"]
    arguments += ["--weights", "hqq-4bit", "--json"]
    assert_one_line(*call(*arguments), "top-2 of 6 experts", "mixtral-8x7b top-2 of 8", "--reshape sizes")
    assert_one_line(*call(*arguments, "--reshape", "size"), "did you mean 'sizes'")
    assert_one_line(*call("replay", trace, "--capacity", "2/layer", "--engine", "graph-fused"), "--hardware")
    code, out, _ = call(*arguments, "--reshape", "sizes", "--engine", "graph-fused")
    assert code == 0
    found = json.loads(out)
    assert (
        found["time"]["engine"] == found["bounds"]["engine"] == found["provenance"]["engine"]["name"] == "graph-fused"
    )
    assert found["bounds"]["hardware"]["best_tokens_per_second"] >= found["bounds"]["best_tokens_per_second"]
    assert found["hits"] + found["misses"] == found["lookups"] > 0
    assert set(found["hits_by"]) == {"cache", "pinned", "prefetch"}
    assert {"prefill", "decode"} == set(found["phases"])
    assert {"tokens_per_second", "tpot_ms", "ttft_ms", "compute_s", "stall_s"} <= set(found["time"])
    assert set(found["time"]["tpot_ms"]) == {"p50", "p95", "p99"}
    assert found["bounds"]["best_tokens_per_second"] >= found["time"]["tokens_per_second"]
    assert found["provenance"]["plan"]["cache"]["capacity"] == "2/layer"


def test_plan_and_options_say_the_same(call: Call, trace: Path, tmp_path: Path) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text('[cache]\ncapacity = "3/layer"\n[eviction]\npolicy = "lfu"\n')
    by_plan = json.loads(call("replay", trace, "--plan", plan, "--json")[1])
    by_options = json.loads(call("replay", trace, "--capacity", "3/layer", "--policy", "lfu", "--json")[1])
    over = json.loads(call("replay", trace, "--plan", plan, "--capacity", "1/layer", "--json")[1])
    assert by_plan == by_options
    assert over["hits"] < by_plan["hits"]


def test_curve_json(call: Call, trace: Path) -> None:
    code, out, _ = call("curve", trace, "--policy", "lru,belady", "--json")
    assert code == 0
    ratios = {(point["policy"], point["capacity"]): point["hit_ratio"] for point in json.loads(out)}
    assert len(ratios) == 12
    assert all(ratios["belady", f"{n}/layer"] >= ratios["lru", f"{n}/layer"] for n in range(1, 7))


def test_policies_and_hardware_json(call: Call) -> None:
    policies = json.loads(call("policies", "list", "--json")[1])
    assert {("eviction", "lru"), ("prefetch", "gate")} <= {(p["kind"], p["name"]) for p in policies}
    hardware = json.loads(call("hardware", "list", "--json")[1])
    assert "rtx3060" in {profile["name"] for profile in hardware}
    assert_one_line(*call("hardware", "show", "rtx9999"), "rtx9999")


def test_whole_model_capacities_do_not_fit_another_number_of_layers(call: Call, trace: Path) -> None:
    """3 layers recorded, 32 asked for: 8 GiB for all would be ten times as much per layer."""
    arguments = ["replay", trace, "--hardware", "rtx3060", "--model-shape", "mixtral-8x7b", "--reshape", "sizes"]
    arguments += ["--capacity"]
    assert_one_line(*call(*arguments, "8GiB"), "8GiB", "/layer")
    assert_one_line(*call(*arguments, "12"), "/layer")
    assert call(*arguments, "50%")[0] == 0


def test_a_plan_that_cannot_fit_says_so(call: Call, trace: Path) -> None:
    arguments = ["replay", trace, "--hardware", "rtx3060", "--model-shape", "mixtral-8x7b", "--capacity", "4/layer"]
    arguments += ["--reshape", "sizes"]
    assert "does not fit" in call(*arguments)[1]
    found = json.loads(call(*arguments, "--json")[1])["time"]
    assert not found["fits"] and found["tokens_per_second"] is found["tpot_ms"] is found["ttft_ms"] is None
    assert found["total_s"] > 0
    assert "does not fit" not in call(*arguments, "--weights", "hqq-2bit")[1]


@pytest.mark.parametrize("victim", ["incoming", "10**9", "-7 + incoming * 0 + 10**6", "demanded(cache, now)"])
def test_a_policy_that_names_nonsense_is_refused(call: Call, trace: Path, tmp_path: Path, victim: str) -> None:
    policy = tmp_path / "bad.py"
    policy.write_text(
        "from policies.eviction.base import EvictionPolicy\n\n\n"
        "def demanded(cache, now):\n"
        "    for key in range(len(cache.seen)):\n"
        "        if cache.seen[key] == now and cache.place[key] != 0:\n"
        "            return key\n"
        "    return len(cache.seen)\n\n\n"
        "class Bad(EvictionPolicy):\n"
        "    def victim(self, cache, group, incoming, now, signal):\n"
        f"        return {victim}\n"
    )
    assert_one_line(*call("replay", trace, "--capacity", "3/layer", "--policy", f"{policy}:Bad"), "victim")


def test_a_state_that_cannot_be_is_one_line(call: Call, trace: Path, tmp_path: Path) -> None:
    policy = tmp_path / "bad.py"
    policy.write_text(
        "import numpy as np\nfrom policies.eviction.base import EvictionPolicy\n"
        "from policies.fields import per_expert\n"
        "class Bad(EvictionPolicy):\n    count = per_expert(np.int8, 1000)\n"
    )
    assert_one_line(*call("replay", trace, "--capacity", "3/layer", "--policy", f"{policy}:Bad"), "Bad")


def test_names_are_no_markup(call: Call, tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), tokens=5, layers=2, experts=4, top_k=2)
    make_trace(tmp_path / "x[red].trace", experts, num_experts=4)
    code, out, _ = call("info", tmp_path / "x[red].trace")
    assert code == 0 and "x[red].trace" in out.replace("\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_one_line(trace: Path) -> None:
    program = "from experiments.cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "info", str(trace)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["record", "generate", "validate"])
def test_a_model_that_is_not_there(call: Call, tmp_path: Path, command: str) -> None:
    assert_one_line(*call(command, tmp_path / "model", *needed(command, tmp_path)), "model")


@pytest.mark.parametrize("command", ["record", "generate", "validate"])
def test_a_model_without_experts(call: Call, tmp_path: Path, command: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    assert_one_line(*call(command, tmp_path / "dense", *needed(command, tmp_path)), "dense", "expert")


def needed(command: str, folder: Path) -> list[str]:
    """The arguments a command needs beside its model."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "hello"}\n')
    return {
        "record": ["--prompts", str(prompts), "--output", str(folder / "out.trace")],
        "generate": ["hello", "--capacity", "2/layer"],
        "validate": ["--prompts", str(prompts), "--capacity", "2/layer"],
    }[command]


def test_version_is_the_one_that_results_name(call: Call, trace: Path) -> None:
    code, out, _ = call("--version")
    provenance = json.loads(call("replay", trace, "--capacity", "2/layer", "--json")[1])["provenance"]
    assert code == 0 and out == f"tracekit {provenance['moe_tracekit']}\n"


@pytest.mark.parametrize(
    ("output", "words"), [("t.trace", ["t.trace exists", "choose another --output"]), ("no/x.trace", ["no directory"])]
)
def test_validate_refuses_an_output_before_it_measures(
    call: Call, trace: Path, tmp_path: Path, output: str, words: list[str]
) -> None:
    """The model is not even looked for."""
    code, out, err = call("validate", "no-model", *needed("validate", tmp_path), "--output", trace.parent / output)
    assert_one_line(code, out, err, *words)
    assert "resume" not in err


def test_replay_batched(call: Call, tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), tokens=40, layers=3, experts=6, top_k=2)
    path = tmp_path / "many.trace"
    make_trace(path, experts, num_experts=6, request=np.arange(40) // 10)
    arguments = ["replay", path, "--capacity", "2/layer", "--batch", "4"]
    whole = json.loads(call(*arguments, "--json")[1])
    assert whole["provenance"]["batching"]["decode_steps"] == 10
    drawn = [
        json.loads(call(*arguments, "--arrival-rate", "0.2", "--seed", seed, "--json")[1])["provenance"]["batching"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] and drawn[0]["decode_steps"] != drawn[2]["decode_steps"]
    assert "batched 4: an approximation" in call(*arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--batch", "0"], "--batch"),
        (["--arrival-rate", "1"], "--batch"),
        (["--batch", "2", "--arrival-rate", "0"], "arrival rate"),
        (["--batch", "2", "--arrival-rate", "nan"], "arrival rate"),
        (["--batch", "2", "--seed", "1"], "--arrival-rate"),
    ],
)
def test_bad_batches_of_replay(call: Call, trace: Path, arguments: list[str], word: str) -> None:
    assert_one_line(*call("replay", trace, "--capacity", "2/layer", *arguments), word)
