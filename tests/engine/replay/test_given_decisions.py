"""Decisions that somebody else made: timed as if they were our own, and refused where they cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.run import iter_decisions
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.event_log import EventLog
from engine.replay.given_decisions import GivenDecisions
from engine.replay.passes import Target, run, timed_slots
from engine.replay.replay import replay
from engine.simulator.timeline import Timeline
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tests.helpers.scenarios import random_scenario
from tests.helpers.thorough import THOROUGH
from tests.helpers.timelines import FEATURES, context_of, costs_of, random_costs
from tests.helpers.traces import make_trace, prompted_trace
from tracekit.errors import TraceError
from tracekit.trace import Trace

# Those that read a fitted predictor decide by a ranking like any other.
EVICTION_NAMES = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]
PREFETCH_NAMES = [name for name in sorted(PREFETCH) if prefetcher(name).reads != "predicted"]


@settings(max_examples=60 * THOROUGH, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    eviction=st.sampled_from(EVICTION_NAMES),
    prefetch=st.sampled_from(PREFETCH_NAMES),
    into_cache=st.booleans(),
    features=st.sets(st.sampled_from(FEATURES)),
)
def test_decisions_read_back_take_the_same_time(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    eviction: str,
    prefetch: str,
    into_cache: bool,
    features: set[str],
) -> None:
    """For every policy and prefetcher, on random machines: each visit ends at the same nanosecond."""
    into_cache = into_cache and eviction_policy(eviction).reads != "next-use"
    scenario = random_scenario(seed, eviction, prefetch, into_cache=into_cache)
    path = tmp_path_factory.mktemp("given") / "e.parquet"
    costs = random_costs(scenario.spec.layers, seed, features)._replace(paced_by=())
    context = context_of(scenario)
    timeline, ends = Timeline(costs, timed_slots(scenario.spec), scenario.spec.experts), []
    with EventLog(path, scenario.trace) as log:
        for demand, events in iter_decisions(scenario.trace, scenario.spec, chunk=50, compiled=False):
            log.append(demand, events)
            of_piece = context[demand.first_step : demand.first_step + demand.steps]
            ends += timeline.run(demand, events, of_piece).visit_end.tolist()
    decided = GivenDecisions(path, scenario.trace)
    (read,) = run(scenario.trace, decided.spec_of([]), [Target(costs=costs)], given=decided, keep=True)
    assert read.timeline is not None
    assert read.visit_end.tolist() == ends
    assert (read.timeline.spent == timeline.spent).all()
    assert read.timeline.prefetches.tolist() == timeline.prefetches.tolist()
    assert read.step_kinds.sum() == log.rows


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return prompted_trace(tmp_path / "t.trace")


def test_a_plan_in_the_file_never_runs_code(trace: Trace, tmp_path: Path) -> None:
    """The file names a policy of somebody's: it is not asked, so it need not exist."""
    plan = plan_from_dict({"cache": {"capacity": "3/layer"}})
    with EventLog(tmp_path / "e.parquet", trace, plan) as log:
        replay(trace, plan, on_events=log.append)
    foreign = plan_from_dict({"cache": {"capacity": "3/layer"}, "eviction": {"policy": "./nowhere.py:Mine"}})
    about = pl.read_parquet_metadata(tmp_path / "e.parquet") | {"tracekit.plan": foreign.to_toml()}
    pl.read_parquet(tmp_path / "e.parquet").write_parquet(tmp_path / "f.parquet", metadata=about)
    assert replay(trace, None, decisions=tmp_path / "f.parquet").hits > 0


# Two layers of three experts, three tokens; by hand, as another engine would say it.
CHOSEN = np.array([[[0, 1], [0, 2]], [[0, 2], [1, 2]], [[1, 0], [0, 65535]]], np.uint16)
ROWS = [
    # visit, layer, kind, expert, slot
    *((0, 0, "load", 0, 0), (0, 0, "load", 1, 1), (0, 1, "prefetch", 2, 2)),
    *((1, 1, "load", 0, 3), (1, 1, "hit-prefetched", 2, 2)),  # hits may stand behind loads
    *((2, 0, "evict", 1, 1), (2, 0, "load", 2, 1), (2, 0, "hit", 0, 0)),
    *((3, 1, "hit", 2, 2), (3, 1, "load", 1, 3)),  # what was used needs no row to leave
    *((4, 0, "hit", 0, 0), (4, 0, "bypass", 1, 4)),
    *((5, 1, "load", 0, 4),),
]


def hand_made(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    frame = pl.DataFrame(rows, schema=["visit", "layer", "kind", "expert", "slot"], orient="row")
    frame.write_parquet(path)
    return path


def test_another_engines_decisions_are_timed(tmp_path: Path) -> None:
    """
    Dense 5, a copy 10, an expert 3. Visit 0: 5-15 A, 15-25 B, computed by 28; C prefetched 25-35.
    Visit 1: gate at 33, so A' is copied 35-45; C waited for 33-35, computed by 38; A' by 48.
    Visit 2: gate at 53; A computed by 56; C' copied 53-63, computed by 66.
    Visit 3: gate at 71; C there, by 74; B' copied 71-81, by 84. Visit 4: 89; A 92, B 89-99, by 102.
    Visit 5: gate at 107; the copy 107-117; by 120.
    """
    trace = make_trace(tmp_path / "h.trace", CHOSEN, num_experts=3)
    decided = GivenDecisions(hand_made(tmp_path / "h.parquet", ROWS), trace)
    (done,) = run(trace, decided.spec_of([]), [Target(costs=costs_of(2, paced_by=()))], given=decided, keep=True)
    assert done.visit_end.tolist() == [28, 48, 66, 84, 102, 120]
    assert done.timeline is not None and done.timeline.prefetches.tolist() == [0, 1, 0]
    result = replay(trace, None, decisions=tmp_path / "h.parquet")
    assert (result.lookups, result.hits, result.hits_by.prefetch, result.bypasses) == (11, 4, 1, 1)
    assert result.bounds is not None and result.provenance["plan"]["cache"]["capacity"] == "5"


def test_bounds_hold_for_an_engine_whose_buffers_are_cache_too(tmp_path: Path) -> None:
    """Two experts in turns, in a plan's one slot and in one of its buffers: a cache of one would copy at each visit."""
    trace = make_trace(tmp_path / "h.trace", np.arange(8).reshape(8, 1, 1) % 2, num_experts=2)
    rows = [(visit, 0, "load" if visit < 2 else "hit", visit % 2, visit % 2) for visit in range(8)]
    result = replay(trace, Plan("1/layer", weights=None), decisions=hand_made(tmp_path / "h.parquet", rows))
    assert result.bounds is not None and result.misses == result.bounds.copies == 2
    own = replay(trace, Plan("1/layer", weights=None))
    assert own.bounds is not None and own.bounds.copies > 2


WRONG = [
    (1, (0, 0, "load", 2, 1), r"visit 0 \(step 0, layer 0\) looks up expert 2, which no token"),
    (7, (2, 0, "hit", 0, 3), r"visit 2 .* says hit of expert 0 in slot 3, where it is not"),
    (8, (3, 1, "hit-prefetched", 2, 2), r"says hit-prefetched of expert 2, which no prefetch brought"),
    (1, (0, 0, "load", 1, -1), r"uses slot -1: they are numbered from 0"),
    (1, (0, 0, "load", 1, 10**7), r"uses slot 10000000: they are numbered from 0 to 4101"),
    (1, None, r"visit 0 .* lacks expert 1, which its tokens chose"),
    (12, None, r"visit 5 .* lacks expert 0"),
    (0, (0, 0, "load", 1, 0), r"names expert 1 twice"),
    (7, (2, 0, "load", 0, 4), r"says load of expert 0, which is on the device already, in slot 0"),
    (5, (2, 0, "evict", 2, 1), r"says evict of expert 2 in slot 1, where it is not"),
    (4, (1, 1, "hitt", 2, 2), r"kind 'hitt' is none of hit, "),
    (4, (1, 1, None, 2, 2), r"kind is empty in a row"),
    (4, (1, 2, "hit", 2, 2), r"there is no layer 2, they are numbered from 0 to 1"),
    (4, (1, 1, "hit", 3, 2), r"there is no expert 3"),
    (12, (6, 0, "load", 0, 4), r"lacks expert 0"),
    (4, (9, 1, "hit-prefetched", 2, 2), r"the visits are out of order"),
]


@pytest.mark.parametrize(("row", "put", "message"), WRONG, ids=[message[:30] for *_, message in WRONG])
def test_what_cannot_be_is_refused(tmp_path: Path, row: int, put: tuple[Any, ...] | None, message: str) -> None:
    trace = make_trace(tmp_path / "h.trace", CHOSEN, num_experts=3)
    rows = [*ROWS[:row], *([] if put is None else [put]), *ROWS[row + 1 :]]
    with pytest.raises(TraceError, match=message):
        replay(trace, None, decisions=hand_made(tmp_path / "h.parquet", rows))


def test_a_waiting_prefetch_is_not_overwritten(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "h.trace", CHOSEN, num_experts=3)
    rows = [ROWS[0], ROWS[2], (0, 0, "load", 1, 2), *ROWS[3:]]
    with pytest.raises(TraceError, match="puts expert 1 into slot 2, where a prefetch waits"):
        replay(trace, None, decisions=hand_made(tmp_path / "h.parquet", rows))


def test_the_file_and_the_trace_have_the_same_visits(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "h.trace", CHOSEN, num_experts=3)
    hand_made(tmp_path / "more.parquet", [*ROWS, (6, 0, "load", 0, 1)])
    with pytest.raises(TraceError, match=r"has visit 6, and .*h\.trace has 6"):
        replay(trace, None, decisions=tmp_path / "more.parquet")
