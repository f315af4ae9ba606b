"""The event log holds exactly the decisions, in order, whole or not at all."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.decisions.run import iter_decisions
from engine.decisions.spec import cache_spec
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.event_log import SCHEMA, EventLog
from policies import events as kinds
from policies.events import KIND_NAMES
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import TraceError
from tracekit.trace import Trace

PLAN = {"cache": {"capacity": "2/layer"}, "prefetch": {"predictor": "oracle", "count": 3, "staging": 2}}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """60 tokens, 3 layers, top-2 of 6; steps of several tokens whose numbers have gaps."""
    rng = np.random.default_rng(1)
    experts = random_experts(rng, tokens=60, layers=3, experts=6, top_k=2)
    step = np.cumsum(rng.integers(0, 3, 60)) + 7
    return make_trace(tmp_path / "t.trace", experts, num_experts=6, step=step)


def write(path: Path, trace: Trace, plan: Plan, chunk: int) -> list[tuple[int, int, int, int]]:
    """Write the log of `plan`; returns the events as `iter_decisions` gave them."""
    spec = cache_spec(trace.manifest.experts_per_layer, [], plan)
    given: list[tuple[int, int, int, int]] = []
    with EventLog(path, trace, plan) as log:
        for demand, events in iter_decisions(trace, spec, chunk=chunk, compiled=False):
            log.append(demand, events)
            given += events.rows()
    assert log.rows == len(given)
    return given


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_the_log_equals_the_decisions(tmp_path: Path, trace: Trace, chunk: int) -> None:
    plan, path = plan_from_dict(PLAN), tmp_path / "e.parquet"
    given = write(path, trace, plan, chunk)
    log = pl.read_parquet(path)
    assert dict(log.schema) == SCHEMA

    code_of = {name: code for code, name in enumerate(KIND_NAMES)}
    read = [
        (visit, code_of[kind], layer * trace.num_experts + expert, slot)
        for visit, _, layer, kind, expert, slot in log.iter_rows()
    ]
    assert read == given
    assert {"hit", "hit-prefetched", "load", "prefetch", "evict"} <= set(log["kind"])
    # Step numbers are the trace's own, so that the log joins with its routing.
    own = np.unique(trace.step)
    assert log["step"].to_list() == own[log["visit"].to_numpy() // trace.layers].tolist()


def test_metadata_says_what_was_replayed(tmp_path: Path, trace: Trace) -> None:
    plan, path = plan_from_dict(PLAN), tmp_path / "e.parquet"
    write(path, trace, plan, 50)
    metadata = pl.read_parquet_metadata(path)
    assert metadata["tracekit.trace_digest"] == trace.digest
    assert metadata["tracekit.plan"] == plan.to_toml()
    assert metadata["tracekit.layers"] == "3"


def test_every_kind_has_a_name() -> None:
    assert len(KIND_NAMES) == kinds.KINDS
    for code, name in enumerate(KIND_NAMES):
        assert getattr(kinds, name.upper().replace("-", "_")) == code
    assert list(KIND_NAMES) == list(SCHEMA["kind"].categories)


def test_a_failure_leaves_what_was_there(tmp_path: Path, trace: Trace) -> None:
    path = tmp_path / "e.parquet"
    given = write(path, trace, plan_from_dict(PLAN), 50)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), EventLog(path, trace) as log:
        for demand, events in iter_decisions(trace, cache_spec([6] * 3, [], plan_from_dict(PLAN)), compiled=False):
            log.append(demand, events)
        raise KeyboardInterrupt
    assert path.read_bytes() == before and given
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "t.trace"]


def test_where_it_cannot_be_written(tmp_path: Path, trace: Trace) -> None:
    for path, word in ((tmp_path / "none" / "e.parquet", "is no directory"), (tmp_path, "it is a directory")):
        with pytest.raises(TraceError, match=word), EventLog(path, trace):
            raise AssertionError("entered")
