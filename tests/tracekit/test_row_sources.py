"""Wherever rows are, on disk, in a view or in memory, a trace of them reads the same."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from tests.helpers.traces import MemoryRows, make_manifest, random_experts
from tracekit.batched import batched
from tracekit.prefix import first_steps
from tracekit.rows import COLUMNS
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

TOKENS, CUTS = 24, (10, 17)  # where its shards end


@pytest.fixture
def disk(tmp_path: Path) -> Trace:
    rng = np.random.default_rng(1)
    arrays = {
        "experts": random_experts(rng, TOKENS, 3, 8, 2),
        "weights": rng.random((TOKENS, 3, 2)),
        "logits": rng.normal(size=(TOKENS, 3, 8)),
    }
    ahead = rng.normal(size=(TOKENS, 2, 8))
    with TraceWriter(tmp_path / "t.trace", make_manifest(3, 8, 2)) as writer:
        for rows in np.split(np.arange(TOKENS), CUTS):
            part = {name: array[rows] for name, array in arrays.items()}
            writer.append(step=rows, request=0, position=rows, phase=1, lookahead={1: ahead[rows]}, **part)
            writer.flush()
    return Trace.open(tmp_path / "t.trace")


def in_memory(trace: Trace) -> Trace:
    dense = {kind: np.array(trace.dense(kind)) for kind in trace.kinds - {"weights"}}
    return Trace(trace.path, trace.manifest, MemoryRows(trace.columns, trace.experts, trace.weights, dense))


@pytest.mark.parametrize("tokens", [TOKENS, 13])
@pytest.mark.parametrize("view", [lambda trace: batched(trace, 1), lambda trace: trace, in_memory])
def test_every_source_reads_the_same(disk: Trace, view: object, tokens: int) -> None:
    assert callable(view)
    trace = first_steps(view(disk), tokens)
    assert trace.kinds == {"weights", "logits", "lookahead-1"} and trace.lookahead_distances == [1]
    assert (trace.tokens, trace.manifest.steps, len(trace.columns)) == (tokens, tokens, tokens)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(trace, name), getattr(disk, name)[:tokens])
    assert not any(array.flags.writeable for array in (trace.step, trace.experts, trace.weights))
    for first, last in ((0, 99), (3, 9), (5, 19), (11, 11)):
        rows = slice(first, min(last, tokens))
        np.testing.assert_array_equal(trace.experts_of(first, last), disk.experts[rows])
        np.testing.assert_array_equal(np.asarray(trace.weights_of(first, last)), np.asarray(disk.weights)[rows])
        for kind in ("logits", "lookahead-1"):
            np.testing.assert_array_equal(
                np.asarray(trace.dense_of(kind, first, last)), np.asarray(disk.dense(kind))[rows]
            )
    assert trace.dense_of("lookahead-2", 0, 5) is None
    table = trace.scan().collect()
    assert table.select(COLUMNS).equals(pl.DataFrame({name: getattr(trace, name) for name in COLUMNS}))
    assert (table["experts"].to_numpy() == trace.experts.reshape(tokens, -1)).all()


def test_another_manifest_leaves_the_trace_as_it_was(disk: Trace) -> None:
    digest = disk.digest
    other = disk.with_manifest(msgspec.structs.replace(disk.manifest, expert_bytes=[1, 2, 3]))
    assert (other.manifest.expert_bytes, disk.manifest.expert_bytes) == ([1, 2, 3], [])
    assert other.digest != digest == disk.digest and (other.experts == disk.experts).all()


def test_a_notebook_is_shown_no_markup_of_a_stranger(disk: Trace) -> None:
    model = msgspec.structs.replace(disk.manifest.model, id="<script>alert(1)</script>")
    page = disk.with_manifest(msgspec.structs.replace(disk.manifest, model=model))._repr_html_()
    assert "&lt;script&gt;" in page and "<script" not in page and "24 in 24 steps of 1 requests" in page
