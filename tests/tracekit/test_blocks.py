"""Reading by blocks gives the rows of the whole, whatever is asked in whatever order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.traces import flip, make_manifest, random_experts
from tracekit import shards
from tracekit.errors import TraceError
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

LAYERS, TOP_K, ROWS = 3, 2, 57


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Three shards of 20, 30 and 7 rows, in blocks of four rows."""
    monkeypatch.setattr(shards, "_BLOCK_LOOKUPS", 4 * LAYERS * TOP_K)
    rng = np.random.default_rng(3)
    with TraceWriter(tmp_path / "t.trace", make_manifest(LAYERS, 8, TOP_K)) as writer:
        for first, last in ((0, 20), (20, 50), (50, ROWS)):
            rows = np.arange(first, last)
            experts = random_experts(rng, len(rows), LAYERS, 8, TOP_K)
            weights = rng.random(experts.shape)
            writer.append(step=rows, request=0, position=rows, phase=1, experts=experts, weights=weights)
            writer.flush()
    return Trace.open(tmp_path / "t.trace")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)), min_size=1, max_size=6))
def test_any_rows_in_any_order(trace: Trace, ends: list[tuple[int, int]]) -> None:
    pieces = [trace.experts_of(*sorted(pair)) for pair in ends]
    weights = [trace.weights_of(*sorted(pair)) for pair in ends]
    whole = Trace.open(trace.path)
    assert whole.weights is not None
    for pair, experts, weight in zip(ends, pieces, weights, strict=True):
        first, last = sorted(pair)
        np.testing.assert_array_equal(experts, whole.experts[first:last])
        np.testing.assert_array_equal(np.asarray(weight), whole.weights[first:last])
        assert not experts.flags.writeable


def test_reading_forwards_decodes_each_row_once(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = shards.read_block

    def counted(*arguments: object) -> object:
        read.append(int(str(arguments[-1])))
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "read_block", counted)
    for first in range(0, ROWS, 3):
        trace.experts_of(first, min(first + 3, ROWS))
    assert sum(read) == ROWS and max(read) == 4


def test_a_damaged_shard_is_found_when_it_is_read(trace: Trace) -> None:
    file = trace.path / trace.manifest.shards[1].name
    flip(file)
    trace.experts_of(0, 20)
    with pytest.raises(TraceError, match=rf"{file.name} is truncated or damaged"):
        trace.experts_of(19, 21)
