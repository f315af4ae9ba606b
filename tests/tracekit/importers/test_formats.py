"""Logs of other projects in the shapes that their sources give them: Megatron, moe-policylang, gpt-oss, mbolt."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.helpers.traces import random_experts
from tracekit.batched import batched
from tracekit.errors import ImportFormatError, TraceError
from tracekit.importers import ImportOptions, import_trace
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

LAYERS, TOP_K, EXPERTS = 3, 2, 16
CHOSEN = random_experts(np.random.default_rng(0), 40, LAYERS, EXPERTS, TOP_K)


def bring(tmp_path: Path, format_name: str, data: bytes | list[dict[str, Any]], **options: Any) -> Trace:
    source = tmp_path / "log"
    text = data if isinstance(data, bytes) else "".join(json.dumps(line) + "\n" for line in data).encode()
    source.write_bytes(text)
    return import_trace(format_name, source, tmp_path / "a.trace", ImportOptions(**options))


def refusal(tmp_path: Path, format_name: str, data: bytes | list[dict[str, Any]]) -> str:
    with pytest.raises(ImportFormatError) as error:
        bring(tmp_path, format_name, data)
    message = str(error.value)
    assert "/log" in message and "\n" not in message and len(message) < 500
    return message


def notes(trace: Trace) -> str:
    return " | ".join(trace.manifest.notes)


def gate_log(sizes: list[int], **more: Any) -> list[dict[str, Any]]:
    """As hooks in vLLM's fused MoE write it: one request for all, numbers from 0 in every pass; layers 0 and 1."""
    rows = np.split(CHOSEN[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [
        {"type": "route", "req_id": "r1", "token_idx": token, "layer": layer, "topk_ids": ids[layer]} | more
        for part in rows
        for layer in range(2)
        for token, ids in enumerate(part.tolist())
    ]


@pytest.mark.parametrize(
    ("sizes", "prefill"),
    [
        ([9, 3, 3, 2, 2], 1),  # a prompt, and a batch that ends one by one
        ([9, 1, 1, 1], 1),  # one request
        ([9, 4, 1, 1], 2),  # a prompt in two chunks
        ([9, 3, 3, 5, 2, 2], 1),  # another prompt comes in between
        ([1, 1, 1], 0),
    ],
)
def test_phases_of_a_log_that_has_none(tmp_path: Path, sizes: list[int], prefill: int) -> None:
    trace = bring(tmp_path, "jsonl", gate_log(sizes))
    assert np.bincount(trace.step).tolist() == sizes
    first = [int(trace.phase[trace.step == step][0]) for step in range(len(sizes))]
    expected = [PREFILL] * prefill + [DECODE] * (len(sizes) - prefill)
    if 5 in sizes:
        expected[sizes.index(5)] = PREFILL
    assert first == expected
    if sizes[1:3] == [3, 3]:
        assert "requests cannot be told apart" in notes(trace)
        with pytest.raises(TraceError, match="does not say whose tokens"):
            batched(trace, 2)
    else:
        assert "told apart" not in notes(trace) and batched(trace, 2).tokens == trace.tokens


def test_a_second_run_under_its_own_header(tmp_path: Path) -> None:
    """A logger that appends: its requests have the names of the first run's, and are others."""
    header = {"type": "meta", "model_id": "Qwen/Qwen1.5-MoE-A2.7B-Chat", "layers_logged": [0, 1], "top_k": 2}
    trace = bring(tmp_path, "jsonl", [header, *gate_log([4, 1, 1]), header, *gate_log([5, 1])])
    assert trace.manifest.requests == 2 and np.bincount(trace.step).tolist() == [4, 1, 1, 5, 1]
    assert trace.manifest.model.id.startswith("Qwen/") and "holds 2 runs" in notes(trace)


def test_megatron(tmp_path: Path) -> None:
    """A line per step and layer for all its tokens; layers of multi-token prediction share the decoder's numbers."""
    record = {"stage": "pre_dispatch", "block": "decoder", "rank": 0, "topk": TOP_K}
    data = []
    for step, rows in enumerate(np.split(CHOSEN[:9], [6, 7, 8])):
        for layer in range(LAYERS):
            ids = rows[:, layer].tolist()
            data.append(record | {"step": step, "layer": 2 * layer, "num_tokens": len(rows), "top_indices": ids})
        data.append(record | {"step": step, "block": "mtp", "mtp_idx": 0, "layer": 0, "top_indices": ids})
    trace = bring(tmp_path, "jsonl", data)
    np.testing.assert_array_equal(trace.experts, CHOSEN[:9])
    assert trace.step.tolist() == [0] * 6 + [1, 2, 3] and trace.phase.tolist() == [PREFILL] * 6 + [DECODE] * 3
    assert trace.manifest.moe_layers == [0, 2, 4] and "4 lines of multi-token prediction" in notes(trace)


def policylang() -> list[dict[str, Any]]:
    return [
        {"p": prompt, "t": token, "l": layer, "e": CHOSEN[token + 5 * prompt, layer].tolist(), "s": [0.75, 0.25]}
        | {"ti": 100 + token, "ph": "prefill" if token < 3 else "decode"}
        for prompt in range(2)
        for token in range(5)
        for layer in range(LAYERS)
    ]


def check_policylang(trace: Trace) -> None:
    np.testing.assert_array_equal(trace.experts, CHOSEN[:10])
    assert trace.request.tolist() == [0] * 5 + [1] * 5 and trace.step.tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]
    assert trace.token_id.tolist() == [100, 101, 102, 103, 104] * 2
    assert trace.weights is not None and trace.weights[0, 0].tolist() == [0.75, 0.25]


def test_moe_policylang(tmp_path: Path) -> None:
    header = {
        "model_name": "allenai/OLMoE-1B-7B",
        "num_layers": LAYERS,
        "num_experts": 64,
        "top_k": 2,
        "num_entries": 30,
    }
    trace = bring(tmp_path, "jsonl", [header, *policylang()])
    check_policylang(trace)
    assert (trace.manifest.model.id, trace.num_experts) == ("allenai/OLMoE-1B-7B", 64)


def test_parquet(tmp_path: Path) -> None:
    names = {"p": "prompt_id", "t": "token_idx", "l": "layer_idx", "e": "selected_experts", "s": "router_scores"}
    names |= {"ti": "token_id", "ph": "phase"}
    frame = pl.DataFrame([{names[key]: value for key, value in row.items()} for row in policylang()])
    frame.write_parquet(tmp_path / "trace.parquet")
    check_policylang(import_trace("parquet", tmp_path / "trace.parquet", tmp_path / "a.trace"))
    (tmp_path / "a.trace").rename(tmp_path / "b.trace")
    assert "is not a readable Parquet file" in refusal(tmp_path, "parquet", b"PAR1 or not")
    frame.rename({"selected_experts": "x"}).write_parquet(tmp_path / "log")
    assert "row 0 has no ids" in refusal(tmp_path, "parquet", (tmp_path / "log").read_bytes())


def router_data(first: int, tokens: list[int]) -> dict[str, Any]:
    passes, at = [], 0
    for size in tokens:
        passes.append(
            {
                f"token_{first + at + token}": {
                    f"layer_{layer}": {
                        "selected_experts": CHOSEN[at + token, layer].tolist(),
                        "selected_probs": [0.5, 0.25],
                    }
                    for layer in range(LAYERS)
                }
                for token in range(size)
            }
        )
        at += size
    return {"original_prompt": "x", "generated_only": [], "router_data": passes}


def test_gpt_oss_router_data(tmp_path: Path) -> None:
    trace = bring(tmp_path, "router-data", json.dumps([router_data(178, [1] * 5), router_data(0, [4, 1])]).encode())
    np.testing.assert_array_equal(trace.experts, np.concatenate([CHOSEN[:5], CHOSEN[:5]]))
    assert trace.position.tolist() == [178, 179, 180, 181, 182, 0, 1, 2, 3, 4]
    assert trace.step.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 6]
    assert trace.phase.tolist() == [DECODE] * 5 + [PREFILL] * 4 + [DECODE] and trace.has_weights


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{}", "has no router_data"),
        (b'{"router_data": []}', "holds no routing"),
        (b'{"router_data": {}}', "not a list of forward passes"),
        (b'{"router_data": [[]]}', "not an object of tokens"),
        (b'{"router_data": [{"tok": {}}]}', "'tok' is not a token"),
        (b'{"router_data": [{"token_1": {"x": {}}}]}', "'x' is not a layer"),
        (b'{"router_data": [{"token_1": {"layer_0": {}}}]}', "selected_experts is not a list"),
        (
            b'{"router_data": [{"token_1": {"layer_0": {"selected_experts": [1], "selected_probs": 1}}}]}',
            "is not a list of n",
        ),
    ],
)
def test_router_data_refusals(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path, "router-data", data)


def binary(*words: int) -> bytes:
    return struct.pack(f"<4s{len(words)}i", b"MBLT", *words)


def test_mbolt(tmp_path: Path) -> None:
    words = [1, EXPERTS]
    for rows in np.split(CHOSEN[:6], [4, 5]):
        for layer in range(LAYERS):
            words += [layer, TOP_K, len(rows), *rows[:, layer].ravel().tolist()]
    trace = bring(tmp_path, "mbolt", binary(*words, 0, TOP_K, 1, 5))
    np.testing.assert_array_equal(trace.experts, CHOSEN[:6])
    assert trace.step.tolist() == [0] * 4 + [1, 2] and trace.phase.tolist() == [PREFILL] * 4 + [DECODE] * 2
    assert trace.num_experts == EXPERTS and "cut off at the end" in notes(trace)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF" + bytes(64), "does not begin with MBLT"),
        (binary(2, 8), "is of version [2]"),
        (binary(1, 8), "holds no whole micro-batch"),
        (binary(1, 8, 0, 2, 1, 3), "holds no whole micro-batch"),
        (binary(1, 8, 9999, 2, 1, 3, 4), "layer 9999"),
        (binary(1, 8, 0, 2, -1, 3, 4), "-1 tokens: damaged"),
        (binary(1, 4, 0, 2, 1, 3, 4), "its header says there are 4"),
        (binary(1, 8, 0, 2, 1, 3, 3), "listed twice"),
    ],
)
def test_mbolt_refusals(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path, "mbolt", data)


def test_micro_batches_are_passes(tmp_path: Path) -> None:
    """A prompt that llama.cpp cut into two micro-batches went through every layer twice."""
    text = "layer,expert\n"
    for rows in np.split(CHOSEN[:7], [3, 5, 6]):
        text += "".join(f"{layer},{expert}\n" for layer in range(LAYERS) for expert in rows[:, layer].ravel().tolist())
    trace = bring(tmp_path, "llama-csv", text.encode(), top_k=TOP_K)
    assert trace.step.tolist() == [0, 0, 0, 1, 1, 2, 3] and trace.phase.tolist() == [PREFILL] * 5 + [DECODE] * 2


def test_requests_in_one_pass_share_its_step(tmp_path: Path) -> None:
    """A log that goes layer by layer through the tokens of three requests is of a batch."""
    data = [
        {"request": name, "token": token, "layer": layer, "ids": CHOSEN[3 * token + at, layer].tolist()}
        for token in range(4)
        for layer in range(LAYERS)
        for at, name in enumerate("abc")
    ]
    trace = bring(tmp_path, "jsonl", data)
    assert trace.step.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and trace.request.tolist() == [0, 1, 2] * 4
    assert set(trace.phase.tolist()) == {DECODE} and "told apart" not in notes(trace)
    np.testing.assert_array_equal(trace.experts, CHOSEN[:12])


@pytest.mark.parametrize("by_layer", [False, True])
def test_steps_that_each_request_counts_itself(tmp_path: Path, by_layer: bool) -> None:
    """Numbers that go back are no batch's: the requests came one after the other, or the log is sorted by layer."""
    data = [
        {"request": name, "step": token, "layer": layer, "ids": CHOSEN[3 * at + token, layer].tolist()}
        for at, name in enumerate("ab")
        for token in range(3)
        for layer in range(2)
    ]
    if by_layer:
        data.sort(key=lambda line: line["layer"])
    trace = bring(tmp_path, "jsonl", data)
    assert trace.step.tolist() == list(range(6)) and trace.request.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(trace.experts, CHOSEN[:6, :2])


def test_short_names_yield_to_long_ones(tmp_path: Path) -> None:
    data = [{"t": 1700 + at, "token": at, "layer": 0, "l": 9, "e": [0, 1], "ids": [2, 3]} for at in range(2)]
    trace = bring(tmp_path, "jsonl", data)
    assert trace.position.tolist() == [0, 1] and trace.manifest.moe_layers == [0]
    assert trace.experts.tolist() == [[[2, 3]], [[2, 3]]]


def test_fields_that_were_not_read_are_said(tmp_path: Path) -> None:
    data = [line | {"router_entropies": [0.5, 1.5]} for line in gate_log([4, 1])]
    assert "fields not read: router_entropies" in notes(bring(tmp_path, "jsonl", data))


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    assert "its first line has: id, model, choices" in refusal(
        tmp_path, "jsonl", [{"id": 1, "model": "m", "choices": []}]
    )
    assert "line 2 has no layer" in refusal(tmp_path, "jsonl", [{"a": 1}, {"b": 1}])
