"""The importers that read line by line: jsonl, llama-csv, deepseek-csv."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import ImportOptions, import_trace
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.trace import Trace

LAYERS, TOP_K, EXPERTS = 3, 2, 16
CHOSEN = random_experts(np.random.default_rng(0), 6, LAYERS, EXPERTS, TOP_K)
Choice = tuple[int, int, list[int]]  # token, layer, ids
CHOICES: list[Choice] = [(token, layer, CHOSEN[token, layer].tolist()) for token in range(6) for layer in range(LAYERS)]


def bring(tmp_path: Path, format_name: str, text: str, **options: Any) -> Trace:
    (tmp_path / "log.txt").write_text(text, encoding="utf-8")
    return import_trace(format_name, tmp_path / "log.txt", tmp_path / "a.trace", ImportOptions(**options))


def refusal(tmp_path: Path, format_name: str, text: str, **options: Any) -> str:
    with pytest.raises(ImportFormatError) as error:
        bring(tmp_path, format_name, text, **options)
    message = str(error.value)
    assert "log.txt" in message and "\n" not in message and len(message) < 500
    return message


def lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def plain(**more: Any) -> list[dict[str, Any]]:
    return [{"token": token, "layer": layer, "ids": ids} | more for token, layer, ids in CHOICES]


# jsonl


def test_jsonl(tmp_path: Path) -> None:
    entries = [entry | {"weights": [0.75, 0.25]} for entry in plain()]
    trace = bring(tmp_path, "jsonl", lines(entries[::-1]))  # the order of lines does not matter
    np.testing.assert_array_equal(trace.experts, CHOSEN)
    assert trace.weights is not None and trace.weights[0, 0].tolist() == [0.75, 0.25]
    assert set(trace.phase.tolist()) == {DECODE} and trace.step.tolist() == list(range(6))
    assert any("no phases" in note for note in trace.manifest.notes)


def test_jsonl_other_names_headers_and_sparse_layers(tmp_path: Path) -> None:
    """As loggers inside engines write it: a header, other names, fields that mean nothing here."""
    entries = [
        {"type": "route", "req_id": f"r{request}", "token_idx": t, "layer": 2 * layer + 1, "topk_ids": ids, "x": None}
        for request in (1, 0)
        for t, layer, ids in CHOICES
    ]
    text = lines([{"type": "meta", "model_id": "m", "top_k": 2}, *entries])
    trace = bring(tmp_path, "jsonl", text, experts=EXPERTS)
    assert trace.manifest.moe_layers == [1, 3, 5] and trace.manifest.model_layers == 6
    assert trace.request.tolist() == [0] * 6 + [1] * 6
    np.testing.assert_array_equal(trace.experts, np.concatenate([CHOSEN, CHOSEN]))


def test_jsonl_phases(tmp_path: Path) -> None:
    entries = [entry | {"phase": "prefill" if entry["token"] < 4 else "decode"} for entry in plain()]
    trace = bring(tmp_path, "jsonl", lines(entries))
    assert trace.phase.tolist() == [PREFILL] * 4 + [DECODE] * 2 and trace.step.tolist() == [0, 0, 0, 0, 1, 2]


def test_jsonl_a_line_per_pass(tmp_path: Path) -> None:
    """Lists of lists: the choices of all tokens of a pass. Without token numbers, passes follow each other."""
    entries = [
        {"layer_idx": layer, "topk_experts": CHOSEN[rows, layer].tolist(), "topk_weights": [[0.5, 0.25]] * len(rows)}
        for rows in ([0, 1, 2], [3], [4, 5])
        for layer in range(LAYERS)
    ]
    trace = bring(tmp_path, "jsonl", lines(entries))
    np.testing.assert_array_equal(trace.experts, CHOSEN)
    assert trace.has_weights


def test_jsonl_numbers_that_start_again(tmp_path: Path) -> None:
    """A hook numbers the tokens of each forward pass from 0: a prompt of four, then one token at a time."""
    entries = [
        entry | {"token": max(0, entry["token"] - 3) if entry["token"] > 3 else entry["token"]} for entry in plain()
    ]
    for entry in entries[12:]:
        entry["token"] = 0
    trace = bring(tmp_path, "jsonl", lines(entries))
    np.testing.assert_array_equal(trace.experts, CHOSEN)
    assert trace.phase.tolist() == [PREFILL] * 4 + [DECODE] * 2 and trace.step.tolist() == [0, 0, 0, 0, 1, 2]
    assert any("start again in 1 requests" in note for note in trace.manifest.notes)


def test_jsonl_k_may_vary(tmp_path: Path) -> None:
    entries = plain()
    entries[4]["ids"] = [9]
    trace = bring(tmp_path, "jsonl", lines(entries))
    assert trace.experts[1, 1].tolist() == [9, UNUSED]


GOOD = lines(plain())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no routing"),
        ("hello", "line 1 is not JSON"),
        ("[]", "line 1 is not a JSON object"),
        (GOOD[:-9], "line 18 is not JSON (truncated?)"),
        (GOOD.replace('"layer"', '"layr"'), "line 1 has no layer (it has: token, layr, ids); did you mean 'layer'"),
        ('{"layer": 0}', "has no ids"),
        (lines(plain(layer=-1)), "layer is '-1'"),
        (lines(plain(layer=2**40)), "layer is"),
        (lines(plain(layer=5000)), "out of range"),
        (lines(plain(ids=[])), "ids is not a list of experts"),
        (lines(plain(ids=["a"])), "not a list of integers"),
        (lines(plain(ids=[1, 1])), "an expert is listed twice in [1, 1]"),
        (lines(plain(ids=[70000])), "expert ids 70000 to 70000"),
        (lines(plain(ids=[10**30])), "line 1"),
        (lines(plain(ids=list(range(2000)))), "2000 experts"),
        (lines(plain(weights=[1.0])), "1 weights for 2 experts"),
        (lines(plain(weights="x")), "weights are not"),
        (lines(plain(weights=[1e300, 1.0])), "not finite"),
        (lines(plain(request=[1])), "expected a number or a text"),
        (lines(plain(phase="warmup")), "phase is 'warmup'"),
        (lines(plain()[:-1]), "layer 2 has 5 rows, layer 0 has 6: rows were dropped"),
        (
            lines(plain()[:4] + plain()[5:] + [{"token": 7, "layer": 1, "ids": [3, 4]}]),
            "token 7 (line 18) has 1 of 3 layers",
        ),
        (lines([*plain(), plain()[4]]), "line 19: token 1 at layer 1 was given in line 5 already"),
        (lines([*plain(), {"layer": 0, "ids": [1, 2]}]), "some lines number their tokens and some do not"),
    ],
)
def test_jsonl_refusals(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, "jsonl", text)


# llama-csv


def graph(batches: list[list[int]], last: bool = False) -> str:
    """`layer,expert` lines as the graph runs them: batch, layer, token. `last`: outputs of the last token only."""
    text = "layer,expert\n"
    for rows in batches:
        for layer in range(LAYERS):
            for row in rows[-1:] if last and layer == LAYERS - 1 else rows:
                text += "".join(f"{layer + 1},{expert}\n" for expert in CHOSEN[row, layer])
    return text


def test_llama_activations(tmp_path: Path) -> None:
    trace = bring(tmp_path, "llama-csv", graph([[0, 1, 2], [3], [4], [5]], last=True))
    expected = CHOSEN.copy()
    expected[:2, 2] = UNUSED
    np.testing.assert_array_equal(trace.experts, expected)
    assert trace.phase.tolist() == [0, 0, 0, 1, 1, 1] and trace.step.tolist() == [0, 0, 0, 1, 2, 3]
    assert trace.manifest.moe_layers == [1, 2, 3]
    notes = " | ".join(trace.manifest.notes)
    for words in ("top-2 taken from", "first moe-trace release", "layer 3 has no routing for 2 of 6 tokens"):
        assert words in notes


def test_llama_concatenated_logs_are_requests(tmp_path: Path) -> None:
    trace = bring(tmp_path, "llama-csv", graph([[0, 1], [2]]) + graph([[3], [4], [5]]), top_k=2, experts=EXPERTS)
    np.testing.assert_array_equal(trace.experts, CHOSEN)
    assert trace.request.tolist() == [0, 0, 0, 1, 1, 1]


def test_llama_listed(tmp_path: Path) -> None:
    text = "layer_id,expert_ids\n"
    text += "".join(f"{layer},{' '.join(map(str, ids))}\n" for _, layer, ids in CHOICES)
    trace = bring(tmp_path, "llama-csv", text)
    np.testing.assert_array_equal(trace.experts, CHOSEN)


def ranked(choices: list[Choice], prompt: int = 2) -> str:
    return "phase,token,layer,rank,expert\n" + "".join(
        f"{'prefill' if token < prompt else 'decode'},{token},{layer},{rank},{expert}\n"
        for token, layer, ids in choices
        for rank, expert in enumerate(ids)
    )


def test_llama_ranked(tmp_path: Path) -> None:
    trace = bring(tmp_path, "llama-csv", ranked(CHOICES) + ranked(CHOICES))
    np.testing.assert_array_equal(trace.experts, np.concatenate([CHOSEN, CHOSEN]))
    assert trace.phase.tolist() == [0, 0, 1, 1, 1, 1] * 2 and trace.manifest.requests == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a routing log"),
        ("a,b\n1,2\n", "its first line is 'a,b'"),
        ("layer,expert\n", "holds no routing lines"),
        ("layer,expert\n0,1\n0,2\n0,3\n", "one layer: give --top-k"),
        (graph([[0], [1]]) + "1", "1 fields, expected 2 (truncated?)"),
        (graph([[0], [1]]) + "1,x\n", "line 14: expert is 'x'"),
        (graph([[0], [1]]) + "1,-1\n", "expert is '-1'"),
        (graph([[0], [1]]) + "1,99999999999999999999\n", "expert is"),
        (graph([[0], [1]]) + "1,3\n", "micro-batch 2 lacks layer"),
        (graph([[0], [1]]).removesuffix(f"3,{CHOSEN[1, 2, 1]}\n"), "not a multiple of top-"),
        (graph([[0, 1], [2]]).replace("2,", "9,", 1), "micro-batch 0 lacks layer"),
        ("layer,expert\n0,1\n0,1\n1,2\n1,3\n", "listed twice"),
        (ranked(CHOICES)[:-9], "fields, expected 5"),
        (ranked(CHOICES).replace("decode", "warmup"), "phase is 'warmup'"),
        (ranked(CHOICES[:-1]), "rows were dropped"),
        (ranked(CHOICES).replace(",1,", ",5,", 1), "does not follow the line before"),
    ],
)
def test_llama_refusals(tmp_path: Path, text: str, words: str) -> None:
    options = {"top_k": 2} if "micro-batch" in words or "multiple" in words else {}
    assert words in refusal(tmp_path, "llama-csv", text, **options)


# deepseek-csv

HEADER = "Layer ID,Batch Number,Token,Activated Expert IDs\n"
WORDS = ["<bos>", "I", '","', '"a\nb"', "Ġof", "I"]


def activations(layers: int = LAYERS, batches: int = 1) -> str:
    return HEADER + "".join(
        f'{layer + 1},{batch},{WORDS[token]},"{CHOSEN[token, layer].tolist()}"\n'
        for layer in range(layers)
        for batch in range(batches)
        for token in range(6)
    )


def test_deepseek(tmp_path: Path) -> None:
    trace = bring(tmp_path, "deepseek-csv", activations(), model="deepseek-v2-lite", experts=64)
    np.testing.assert_array_equal(trace.experts, CHOSEN)
    assert (trace.manifest.moe_layers, trace.num_experts) == ([1, 2, 3], 64)
    assert set(trace.phase.tolist()) == {PREFILL} and set(trace.step.tolist()) == {0}


def test_deepseek_batch_is_one_pass(tmp_path: Path) -> None:
    trace = bring(tmp_path, "deepseek-csv", activations(batches=2))
    assert trace.manifest.requests == 2 and trace.manifest.steps == 1
    np.testing.assert_array_equal(trace.experts, np.concatenate([CHOSEN, CHOSEN]))


def test_deepseek_folder(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in (10, 9):
        (folder / f"prompt_{number}_data.csv").write_text(activations())
    (folder / "notes.txt").write_text("no log")
    trace = import_trace("deepseek-csv", folder, tmp_path / "a.trace")
    assert trace.manifest.requests == 2 and trace.step.tolist() == [0] * 6 + [1] * 6
    with pytest.raises(ImportFormatError, match="not a file"):
        import_trace("jsonl", folder, tmp_path / "b.trace")
    (folder / "prompt_11_data.csv").write_text(activations(layers=2))
    with pytest.raises(ImportFormatError, match="prompt_11_data"):
        import_trace("deepseek-csv", folder, tmp_path / "c.trace")


def dropped(text: str, line: int) -> str:
    kept = text.splitlines(keepends=True)
    return "".join(kept[:line] + kept[line + 1 :])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an activation log"),
        ("a,b\n", "is not an activation log"),
        (HEADER, "holds no activations"),
        (activations()[:-12], "3 fields, expected 4 (truncated?)"),
        (activations() + "4,0\n", "2 fields, expected 4"),
        (activations().replace("[", "{"), "is not a list of expert ids"),
        (activations().replace("\n1,0,I", "\nx,0,I"), "layer 'x'"),
        (dropped(activations(), 9), "is not the token of the layers before"),
        (dropped(activations(), 21), "layer 3 has 5 rows, layer 1 has 6: rows were dropped"),
        (HEADER + '1,0,I,"[3, 3]"\n', "listed twice"),
        (HEADER + '1,0,I,"[99999]"\n', "expert ids 99999"),
        (HEADER + '1,0,"I', "expected 4"),
    ],
)
def test_deepseek_refusals(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, "deepseek-csv", text)
