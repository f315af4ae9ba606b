"""Counts without a routing: totals are kept exactly, spread as said, and timed as any decisions are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.counts import Cell, read_cells, replay_counts, totals_of
from engine.replay.spread import Spread, Totals, decisions, even, spread
from engine.shapes import load_shape
from engine.simulator.timeline import Timeline
from policies.events import DROP, HIT, HIT_PREFETCHED, LOAD, PREFETCH, Events
from tests.helpers.simpy_model import Machine, Visit
from tests.helpers.timelines import FEATURES, random_costs
from tracekit.demand import Demand
from tracekit.errors import HardwareError, StudyError

SHAPE, H100 = load_shape("mixtral-8x7b"), load_hardware("h100")
CELL = Cell(steps=50, tokens=19.1, distinct=6.27, demand_loads=1806)
FUSED = Plan("0", compute_experts="fused")
HOW = st.sampled_from(["even", "random"])


@st.composite
def some_totals(draw: st.DrawFn) -> Totals:
    """Small ones, with whatever prefetches find room."""
    steps, layers, experts = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    tokens = draw(st.integers(steps, 6 * steps))
    lookups = draw(st.integers(1, steps * layers * experts))
    return Totals(
        steps=steps,
        layers=layers,
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        tokens=tokens,
        lookups=lookups,
        misses=draw(st.integers(0, lookups)),
        useful=draw(st.integers(0, steps * layers)) * (layers > 1),
        wasted=draw(st.integers(0, steps * layers)) * (layers > 1),
    )


@settings(max_examples=300, deadline=None)
@given(totals=some_totals(), how=HOW, seed=st.integers(0, 99), data=st.data())
def test_totals_are_kept_and_every_visit_is_possible(
    totals: Totals, how: Spread, seed: int, data: st.DataObject
) -> None:
    try:
        visits = spread(totals, how, seed)
    except StudyError:
        assume(False)
    cut = data.draw(st.integers(0, totals.steps))
    pieces = [decisions(totals, visits, *ends) for ends in ((0, cut), (cut, totals.steps)) if ends[0] < ends[1]]
    kinds = np.concatenate([events.kind for _, events in pieces])
    assert np.isin(kinds, (HIT, HIT_PREFETCHED)).sum() == totals.lookups - totals.misses
    assert (kinds == LOAD).sum() == totals.misses
    assert (kinds == HIT_PREFETCHED).sum() == totals.useful
    assert (kinds == DROP).sum() == totals.wasted
    assert (kinds == PREFETCH).sum() == totals.useful + totals.wasted
    assert sum(int(demand.step_tokens.sum()) for demand, _ in pieces) == totals.tokens
    assert np.ptp(visits.distinct) <= 1
    for demand, events in pieces:
        ahead: set[int] = set()
        for v in range(demand.visits):
            layer = v % totals.layers
            of_visit = [row[1:] for row in events.rows() if row[0] - events.first_visit == v]
            demanded = {key for kind, key, _ in of_visit if kind in (HIT, HIT_PREFETCHED, LOAD)}
            assert demanded == set(demand.keys[demand.start[v] : demand.start[v + 1]].tolist())
            # What is demanded was not copied over by what was prefetched in vain.
            slots = {slot for kind, _, slot in of_visit if kind in (HIT, HIT_PREFETCHED, LOAD)}
            assert slots == demanded and max(slots | {0}) < totals.slots // 2
            assert all(slot >= totals.slots // 2 for kind, _, slot in of_visit if kind == DROP)
            assert len(demanded) == demand.start[v + 1] - demand.start[v]
            assert {key // totals.experts for key in demanded} <= {layer}
            # Whatever was prefetched is used or given up here, and nothing else is.
            assert {key for kind, key, _ in of_visit if kind in (HIT_PREFETCHED, DROP)} == ahead
            ahead = {key for kind, key, _ in of_visit if kind == PREFETCH}
            assert {key // totals.experts for key in ahead} <= {layer + 1}
        assert not ahead


@settings(max_examples=300, deadline=None)
@given(totals=some_totals(), how=HOW, seed=st.integers(0, 2**32 - 1), features=st.sets(st.sampled_from(FEATURES)))
def test_they_are_timed_as_the_simpy_model_times_them(
    totals: Totals, how: Spread, seed: int, features: set[str]
) -> None:
    try:
        visits = spread(totals, how, seed)
    except StudyError:
        assume(False)
    # A first step loads everything: a hit is of something that came once.
    everything = totals.layers * totals.experts
    first = dataclasses.replace(totals, steps=1, tokens=1, lookups=everything, misses=everything, useful=0, wasted=0)
    pieces = [decisions(first, spread(first, "even", 0), 0, 1), decisions(totals, visits, 0, totals.steps)]
    costs = random_costs(totals.layers, seed, features - {"cpu"})
    timeline, ends, simpy = Timeline(costs, totals.slots, totals.experts), [], []
    for demand, events in pieces:
        context = demand.step_tokens.astype(np.int64) * 3
        ends += timeline.run(demand, events, context).visit_end.tolist()
        simpy += simpy_visits_of(demand, events, context)
    assert Machine(costs, totals.experts, simpy).run() == ends


def simpy_visits_of(demand: Demand, events: Events, context: np.ndarray) -> list[Visit]:
    decided: list[list[tuple[int, int, int]]] = [[] for _ in range(demand.visits)]
    for visit, kind, key, slot in events.rows():
        decided[visit - events.first_visit].append((kind, key, slot))
    found = []
    for v, of_visit in enumerate(decided):
        step, part = v // demand.layers, slice(demand.start[v], demand.start[v + 1])
        tokens_of = dict(zip(demand.keys[part].tolist(), demand.tokens[part].tolist(), strict=True))
        found.append(Visit(v % demand.layers, int(demand.step_tokens[step]), int(context[step]), tokens_of, of_visit))
    return found


@given(st.integers(0, 1000), st.integers(1, 50))
def test_even_parts_differ_by_one_at_most(total: int, parts: int) -> None:
    found = even(total, parts)
    assert (int(found.sum()), len(found)) == (total, parts)
    assert np.ptp(found) <= 1


def test_fused_without_prefetching_a_step_is_its_work_and_its_copies() -> None:
    """Nothing is hidden: 36.12 loads a step one after the other, whichever lookups miss."""
    (found,) = replay_counts([CELL], SHAPE, H100, FUSED)
    copies = CELL.demand_loads / CELL.steps * H100.copy_ns(2 * SHAPE.expert_params) / 1e6
    assert sum(found.stall_ms.values()) == pytest.approx(copies, rel=1e-9)
    assert found.ms_per_step == pytest.approx(found.compute_ms + found.overhead_ms + copies, rel=1e-9)
    assert found.tokens_per_second == pytest.approx(1e3 * 19.1 / found.ms_per_step, rel=1e-9)
    (drawn,) = replay_counts([CELL], SHAPE, H100, FUSED, how="random", seed=3)
    assert drawn.ms_per_step == pytest.approx(found.ms_per_step, rel=1e-12)


def test_misses_that_come_together_wait_longer() -> None:
    (spaced,), (drawn,), (again,) = (
        replay_counts([CELL], SHAPE, H100, how=how, seed=1) for how in ("even", "random", "random")
    )
    assert drawn == again
    assert spaced.ms_per_step < drawn.ms_per_step


def test_useful_prefetches_hide_and_wrong_ones_hinder() -> None:
    fewer = replace(CELL, demand_loads=CELL.demand_loads - 20 * CELL.steps)
    plain, right, wrong = replay_counts(
        [CELL, replace(fewer, prefetches=20), replace(CELL, prefetches=20, useful=0)], SHAPE, H100, FUSED
    )
    assert right.ms_per_step < plain.ms_per_step < wrong.ms_per_step
    assert sum(right.prefetches.values()) == 20 * CELL.steps
    assert wrong.prefetches == {"useful": 0, "late": 0, "wasted": 20 * CELL.steps}


def test_an_error_is_against_what_was_measured() -> None:
    (found,) = replay_counts([replace(CELL, ms_per_step=200.0)], SHAPE, H100)
    assert found.error == pytest.approx(found.ms_per_step / 200 - 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"distinct": 8.5}, "8.5 distinct experts of a layer; mixtral-8x7b has at most 8"),
        ({"tokens": 1}, "at most 2"),
        ({"demand_loads": 10**6}, "1000000 demand loads of 10032 lookups"),
        ({"steps": 10**6}, "too many"),
        ({"prefetches": 400}, "prefetches do not fit: there are more useful ones than hits"),
        ({"prefetches": 400, "useful": 0}, "more wrong ones than experts that are not demanded"),
    ],
)
def test_counts_that_cannot_be_are_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        replay_counts([replace(CELL, **fields)], SHAPE, H100)


def test_cells_are_read_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text(
        "# a paper\n name,steps, distinct,demand_loads,prefetches\n80,10,2,1e2,\nlru,10,1.5,7,0.5\n ,10,1.5,7,0.5\n"
    )
    assert read_cells(path) == [
        Cell(name="80", steps=10, distinct=2, demand_loads=100),
        Cell(name="lru", steps=10, distinct=1.5, demand_loads=7, prefetches=0.5),
        Cell(name="3", steps=10, distinct=1.5, demand_loads=7, prefetches=0.5),
    ]
    assert totals_of(read_cells(path)[1], SHAPE).lookups == 480


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("steps,distinct,demand_loads\n", "no rows"),
        ("steps,distinct,demand_loads\n1,2\n", "row 1: it has not as many values"),
        ("steps,distinct,demand_loads\n1,2,3,4\n", "row 1: it has not as many values"),
        ("steps,steps,distinct,demand_loads\n1,1,2,3\n", "two columns are named 'steps'"),
        ("steps,distinct,loads\n1,2,3\n", "row 1: .*loads"),
        ("steps,distinct,demand_loads\n1,nan,3\n", "row 1: .*distinct"),
        ("steps,distinct,demand_loads\n0,2,3\n", "row 1: .*steps"),
        ("steps,distinct,demand_loads\n1,2,-3\n", "row 1: .*demand_loads"),
    ],
)
def test_a_table_that_is_none_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text(text)
    with pytest.raises(StudyError, match=words):
        read_cells(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_cells(tmp_path)


def test_times_beyond_64_bits_are_refused() -> None:
    slow = load_hardware("h100")
    slow = replace(slow, link=replace(slow.link, host_to_device_bytes_per_s=1000))
    with pytest.raises(HardwareError, match=r"link\.host_to_device_bytes_per_s"):
        replay_counts([Cell(steps=10**6, distinct=1, demand_loads=10**6)], load_shape("mixtral-8x7b"), slow)
