"""What is written is what is read, and the same rows are the same bytes."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.helpers.traces import contents, make_manifest, make_trace, random_experts
from tracekit.errors import TraceError
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[int], int, list[dict[str, Any]]]:
    """Experts per layer, top-k, and the shards of a trace, each as the columns of one append."""
    per_layer = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    top_k = draw(st.integers(1, max(per_layer)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    carried = draw(st.sets(st.sampled_from(["weights", "logits", "lookahead"])))
    distance = draw(st.integers(1, len(per_layer) - 1)) if len(per_layer) > 1 else 0
    shards, step = [], 0
    for rows in draw(st.lists(st.integers(1, 6), max_size=4)):
        experts = np.full((rows, len(per_layer), top_k), UNUSED, dtype=np.int64)
        for layer, number in enumerate(per_layer):
            chosen = rng.random((rows, number)).argsort(axis=1)[:, :top_k]
            experts[:, layer, : chosen.shape[1]] = chosen
        experts[rng.random(experts.shape) < 0.2] = UNUSED
        steps = step + np.sort(rng.integers(0, 4, rows))
        step = int(steps[-1]) + 1
        shard: dict[str, Any] = {
            "step": steps,
            "request": rng.integers(0, 3, rows),
            "position": rng.integers(0, 100, rows),
            "phase": rng.integers(0, 2, rows),
            "token_id": rng.integers(-1, 50_000, rows),
            "experts": experts,
        }
        if "weights" in carried:
            shard["weights"] = rng.random(experts.shape)
        if "logits" in carried:
            shard["logits"] = rng.normal(size=(rows, len(per_layer), max(per_layer)))
        if "lookahead" in carried and distance:
            ahead = rng.normal(size=(rows, len(per_layer) - distance, max(per_layer)))
            shard["lookahead"] = {distance: ahead}
        shards.append(shard)
    return per_layer, top_k, shards


def write(path: Path, recording: tuple[list[int], int, list[dict[str, Any]]]) -> None:
    per_layer, top_k, shards = recording
    with TraceWriter(path, make_manifest(len(per_layer), per_layer, top_k)) as writer:
        for shard in shards:
            writer.append(**shard)
            writer.flush()


@given(recordings())
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_what_is_read(recording: tuple[list[int], int, list[dict[str, Any]]]) -> None:
    per_layer, top_k, shards = recording
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.trace"
        write(path, recording)
        trace = Trace.open(path, verify=True)

        assert trace.manifest.complete
        assert trace.experts.shape == (trace.tokens, len(per_layer), top_k)
        assert trace.experts.dtype == np.uint16
        assert trace.tokens == sum(len(shard["step"]) for shard in shards)
        for name in ("step", "request", "position", "phase", "token_id", "experts"):
            written = [shard[name] for shard in shards]
            expected = np.concatenate(written) if written else np.zeros_like(getattr(trace, name))
            np.testing.assert_array_equal(getattr(trace, name), expected)
            assert not getattr(trace, name).flags.writeable
        used = trace.experts != UNUSED
        if shards and "weights" in shards[0]:
            assert trace.weights is not None and trace.weights.dtype == np.float16
            weights = np.concatenate([shard["weights"] for shard in shards]).astype(np.float16)
            np.testing.assert_array_equal(trace.weights, np.where(used, weights, 0))
        else:
            assert trace.weights is None
        if shards and "logits" in shards[0]:
            logits = np.concatenate([shard["logits"] for shard in shards]).astype(np.float16)
            np.testing.assert_array_equal(trace.logits, logits)
        else:
            assert trace.logits is None
        for distance in trace.lookahead_distances:
            ahead = np.concatenate([shard["lookahead"][distance] for shard in shards])
            np.testing.assert_array_equal(trace.lookahead(distance), ahead.astype(np.float16))
        assert trace.lookahead(99) is None
        assert trace.scan().select(pl.len()).collect().item() == trace.tokens


@given(recordings())
@settings(max_examples=15, deadline=None)
def test_the_same_rows_are_the_same_bytes(recording: tuple[list[int], int, list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a.trace", recording)
        write(Path(folder) / "b.trace", recording)
        assert contents(Path(folder) / "a.trace") == contents(Path(folder) / "b.trace")


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    """Where and with what a trace was written does not enter its digest; what it holds does."""
    experts = random_experts(np.random.default_rng(0), 5)
    first = make_trace(tmp_path / "a.trace", experts, source="record", versions={"x": "1"})
    same = make_trace(tmp_path / "b.trace", experts, source="synthetic", versions={"x": "2"}, notes=["moved"])
    sized = make_trace(tmp_path / "c.trace", experts, expert_bytes=[10, 10])
    other = make_trace(tmp_path / "d.trace", experts[::-1])
    assert first.digest == same.digest
    assert len({first.digest, sized.digest, other.digest}) == 3


def test_manifest_lists_the_digest_of_every_shard(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", [[[0], [1]]], logits=np.zeros((1, 2, 2)))
    listed = {shard.name: shard.sha256 for shard in trace.manifest.shards}
    files = {name: data for name, data in contents(trace.path).items() if name != "manifest.json"}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_shard_that_is_cut_while_the_trace_is_open_is_an_error(tmp_path: Path) -> None:
    """Not a signal: what is read is in memory of our own, never a map of a file that others may cut."""
    chosen = random_experts(np.random.default_rng(0), 4000, 2, 4)
    trace = make_trace(tmp_path / "a.trace", chosen, logits=np.zeros((4000, 2, 4)))
    first = trace.dense_of("logits", 0, 2000)
    os.truncate(trace.path / "logits-00000.safetensors", 4096)
    assert first is not None and not first.any()
    with pytest.raises(TraceError, match="has become shorter"):
        trace.dense_of("logits", 2000, 4000)


def test_logits_are_readable_by_the_safetensors_library(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float16)
    trace = make_trace(tmp_path / "a.trace", random_experts(np.random.default_rng(0), 3, 2, 4), logits=logits)
    np.testing.assert_array_equal(load_file(trace.path / "logits-00000.safetensors")["logits"], logits)


def test_scan_is_the_routing_table(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", [[[0, 1]], [[2, 3]]], phase=[PREFILL, DECODE], token_id=[7, 8])
    table = trace.scan().filter(pl.col("phase") == DECODE).collect()
    assert table["token_id"].to_list() == [8]
    assert table["experts"].to_list() == [[2, 3]]


def test_float_overflow_is_clipped_and_infinity_kept(tmp_path: Path) -> None:
    """-inf is how a router masks an expert; a large finite logit must not turn into one."""
    logits = np.array([[[1e30, -1e30, -np.inf]]], dtype=np.float32)
    trace = make_trace(tmp_path / "a.trace", [[[0]]], num_experts=3, logits=logits)
    assert trace.logits is not None
    assert trace.logits.tolist() == [[[65504.0, -65504.0, -np.inf]]]


@pytest.mark.parametrize("statement", ["import tracekit", "from tracekit import Trace, TraceWriter"])
def test_importing_loads_neither_torch_nor_polars(statement: str) -> None:
    heavy = "('torch', 'polars', 'transformers')"
    check = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
