"""The other formats against what was written, row by row: logs drawn at random, expectations in plain Python."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.traces import random_experts
from tests.tracekit.importers import plain
from tests.tracekit.importers.test_plain import EXPERTS, QUICK, TOP_K, bring, check, dumps
from tracekit.trace import Trace

LAYERS = 3
ABSENT = (65535,) * TOP_K
SEEDS = st.integers(0, 2**32 - 1)
TURNS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4)  # prompt, generated


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


def choices(seed: int, tokens: int) -> list[list[list[int]]]:
    chosen: list[list[list[int]]] = random_experts(np.random.default_rng(seed), tokens, LAYERS, EXPERTS, TOP_K).tolist()
    return chosen


def weight(expert: int) -> float:
    """A weight that f16 holds and that tells whose it is."""
    return (expert + 1) / 32


def check_weights(trace: Trace) -> None:
    assert trace.weights is not None
    used = trace.experts != 65535
    np.testing.assert_array_equal(trace.weights[used], (trace.experts[used].astype(np.float64) + 1) / 32)


def turns_of(turns: list[tuple[int, int]], chosen: list[list[list[int]]]) -> list[plain.Row]:
    """A prompt of each request in a pass, then its generated tokens, each in its own."""
    rows: list[plain.Row] = []
    for request, (prompt, generated) in enumerate(turns):
        step = rows[-1].step + 1 if rows else 0
        for position in range(prompt + generated):
            made = max(0, position - prompt + 1)
            experts = tuple(tuple(ids) for ids in chosen[len(rows)])
            rows.append(plain.Row(step + made, request, position, int(made > 0), experts))
    return rows


@given(dumps(), st.booleans())
@QUICK
def test_parquet(folder: Path, drawn: tuple[str, list[dict[str, Any]]], weighted: bool) -> None:
    says, lines = drawn
    if weighted:
        for line in lines:
            nested = says == "lists"
            line["weights"] = [[weight(e) for e in ids] if nested else weight(ids) for ids in line["ids"]]
    packed = io.BytesIO()
    pl.DataFrame(lines).write_parquet(packed)
    trace = bring(folder, "parquet", packed.getvalue())
    check(trace, plain.dump(lines, says))
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    same = bring(folder, "jsonl", text)
    assert same.digest == trace.digest
    if weighted:
        check_weights(same)


@given(st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(2, 4), min_size=1, max_size=3)), max_size=3), SEEDS)
@QUICK
def test_vllm(folder: Path, drawn: list[tuple[int, list[int]]], seed: int) -> None:
    """Several choices share the rows of their prompt, of which some may be of a cached prefix."""
    rng = np.random.default_rng(seed)
    documents, rows, request = [], [], 0
    for prompt, made in [(3, [2]), *drawn]:
        cached = int(rng.integers(prompt))
        first = random_experts(rng, prompt, LAYERS, EXPERTS, TOP_K)
        texts = []
        for place, generated in enumerate(made):
            array = np.concatenate([first, random_experts(rng, generated - 1, LAYERS, EXPERTS, TOP_K)])
            file = io.BytesIO()
            np.save(file, array.astype(np.uint8))
            routed = base64.b64encode(file.getvalue()).decode()
            texts.append({"index": place, "routed_experts": routed, "token_ids": list(range(generated))})
            start = rows[-1].step + 1 if rows else 0
            for position in range(prompt if place else cached, len(array)):
                step = start + max(0, position - prompt + (place == 0))
                experts = tuple(map(tuple, array[position].tolist()))
                rows.append(plain.Row(step, request, position, int(position >= prompt), experts))
            request += 1
        usage = {"prompt_tokens": prompt, "completion_tokens": sum(made)}
        documents.append({"choices": texts, "usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}})
    check(bring(folder, "vllm", json.dumps(documents).encode()), rows)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=3), SEEDS)
@QUICK
def test_router_data(folder: Path, drawn: list[list[int]], seed: int) -> None:
    chosen = iter(choices(seed, sum(map(sum, drawn))))
    documents, rows, step = [], [], 0
    for request, sizes in enumerate(drawn):
        passes, position = [], 100
        for size in sizes:
            entry = {}
            for _ in range(size):
                experts = next(chosen)
                entry[f"token_{position}"] = {
                    f"layer_{layer}": {"selected_experts": ids, "selected_probs": [weight(e) for e in ids]}
                    for layer, ids in enumerate(experts)
                }
                rows.append(plain.Row(step, request, position, int(size == 1), tuple(map(tuple, experts))))
                position += 1
            passes.append(entry)
            step += 1
        documents.append({"router_data": passes})
    trace = bring(folder, "router-data", json.dumps(documents).encode())
    check(trace, rows)
    check_weights(trace)


@given(TURNS, SEEDS)
@QUICK
def test_route_traces(folder: Path, turns: list[tuple[int, int]], seed: int) -> None:
    """At the last layer only the last token of a prompt has experts."""
    rows = turns_of(turns, choices(seed, sum(map(sum, turns))))
    lines = ["# route_trace v1", f"# n_layer={LAYERS} n_expert={EXPERTS} n_expert_used={TOP_K}"]
    lines += [f"# layer={layer} expert_bytes=10 dense_bytes=3" for layer in range(LAYERS)]
    lines.append("turn,phase,step,layer,slot,expert,weight,residency,expert_bytes")
    expected, residency = [], []
    for row in rows:
        last = row.phase or row.position == turns[row.request][0] - 1
        kept = row.experts if last else (*row.experts[:-1], ABSENT)
        expected.append(row._replace(experts=kept))
        residency.append([[int(e < 65535 and e % 2) for e in ids] for ids in kept])
        for layer, ids in enumerate(kept if last else kept[:-1]):
            for slot, e in enumerate(ids):
                lines.append(f"{row.request},{row.phase},{row.position},{layer},{slot},{e},{weight(e)},{int(e % 2)},10")
    trace = bring(folder, "bigmoe-csv", "\n".join(lines).encode())
    check(trace, expected)
    check_weights(trace)
    assert trace.recorded is not None and trace.recorded.tolist() == residency


@given(TURNS, SEEDS)
@QUICK
def test_ranked_llama_logs(folder: Path, turns: list[tuple[int, int]], seed: int) -> None:
    rows = turns_of(turns, choices(seed, sum(map(sum, turns))))
    lines = ["phase,token,layer,rank,expert"]
    for row in rows:
        phase = "decode" if row.phase else "prefill"
        for layer, ids in enumerate(row.experts):
            lines += [f"{phase},{row.position},{layer},{rank},{e}" for rank, e in enumerate(ids)]
    check(bring(folder, "llama-csv", "\n".join(lines).encode()), rows)


@given(TURNS, SEEDS, st.booleans())
@QUICK
def test_grouped_llama_logs(folder: Path, turns: list[tuple[int, int]], seed: int, listed: bool) -> None:
    """Files put together: each begins with its header, and a micro-batch goes layer by layer."""
    rows = turns_of(turns, choices(seed, sum(map(sum, turns))))
    expected, lines = [], []
    for request, (prompt, generated) in enumerate(turns):
        own = [row for row in rows if row.request == request]
        lines.append("layer_id,expert_ids" if listed else "layer,expert")
        for batch in [own[:prompt], *([row] for row in own[prompt : prompt + generated])]:
            for layer in range(LAYERS):
                for row in batch:
                    ids = row.experts[layer]
                    lines += [f"{layer},{' '.join(map(str, ids))}"] if listed else [f"{layer},{e}" for e in ids]
        # One token alone cannot be told from a generated one.
        expected += [row._replace(phase=1) if prompt == 1 else row for row in own]
    check(bring(folder, "llama-csv", "\n".join(lines).encode(), top_k=TOP_K), expected)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), SEEDS, st.booleans())
@QUICK
def test_deepseek_logs(folder: Path, sizes: list[int], seed: int, generated: bool) -> None:
    chosen = choices(seed, sum(sizes))
    rows = []
    for request, size in enumerate(sizes):
        for position in range(size):
            experts = tuple(tuple(ids) for ids in chosen[len(rows)])
            rows.append(plain.Row(len(rows) if generated else 0, request, position, int(generated), experts))
    lines = ["Layer ID,Batch Number,Token,Activated Expert IDs"]
    for layer in range(LAYERS):
        lines += [f'{layer + 1},{row.request},"t, {row.position}","{list(row.experts[layer])}"' for row in rows]
    text = "\n".join(lines).encode()
    check(bring(folder, "deepseek-csv", text, rows_as="decode" if generated else None), rows)


@given(TURNS, SEEDS)
@QUICK
def test_arrays(folder: Path, turns: list[tuple[int, int]], seed: int) -> None:
    chosen = choices(seed, sum(map(sum, turns)))
    rows = turns_of(turns, chosen)
    columns = {name: [getattr(row, name) for row in rows] for name in ("step", "request", "position", "phase")}
    file = io.BytesIO()
    np.savez(file, experts=np.array(chosen), weights=(np.array(chosen) + 1) / 32, **columns)
    trace = bring(folder, "npz", file.getvalue())
    check(trace, rows)
    check_weights(trace)
