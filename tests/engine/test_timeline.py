"""The timeline against hand-drawn scenarios and against an independent SimPy model, to the nanosecond."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions import iter_decisions
from engine.simulator.costs import Costs
from engine.simulator.timeline import CAUSES, Timeline
from policies.events import Events
from tests.helpers.reference_cache import DROP, EVICT, HIT, HIT_PREFETCHED, LOAD, PREFETCH, STREAM
from tests.helpers.scenarios import Scenario, random_scenario
from tests.helpers.simpy_model import Machine, Visit
from tracekit.demand import Demand, demand_of

SEEDS = st.integers(0, 2**32 - 1)


def costs_of(layers: int, copy: int = 10, expert: int = 3, dense: int = 5, **fields: Any) -> Costs:
    """Costs in whole nanoseconds; whatever is not named costs nothing."""
    none = np.zeros(layers, np.int64)
    settings: dict[str, Any] = {name: 0 for name in Costs.__dataclass_fields__}
    settings |= {
        "dense_ns": none + dense,
        "expert_ns": none + expert,
        "dequant_ns": none,
        "copy_engines": 1,
        "chunks": none + 1,
        "chunk_ns": none[:, None] + copy,
        "rest_ns": none[:, None] + copy,
        "expert_bytes": (1,) * layers,
        "host_bytes": -1,
        "read_ns": none,
        "cpu_expert_ns": none,
        "scale": 1.0,
        "notes": (),
    }
    return Costs(**(settings | fields))


class Script:
    """Two layers of three experts, one token a step, decisions written by hand."""

    def __init__(self, visits: list[list[tuple[int, int, int]]], slots: int = 4, **costs: Any) -> None:
        """`visits`: for each visit its events (kind, expert, slot); layers alternate 0, 1."""
        experts = np.full((len(visits) // 2, 2, 3), 65535, np.uint16)
        rows = []
        for number, events in enumerate(visits):
            layer = number % 2
            demanded = [expert for kind, expert, _ in events if kind <= STREAM]
            experts[number // 2, layer, : len(demanded)] = demanded
            for kind, expert, slot in events:
                # A prefetch, and what becomes of it unused, is of the other layer.
                of_layer = 1 - layer if kind == PREFETCH else layer
                rows.append((number, kind, of_layer * 3 + expert, slot))
        steps = np.arange(len(experts) + 1)
        self.demand = demand_of(experts, 3, steps, np.ones(len(experts), np.uint8))
        self.events = Events.of(rows, len(visits))
        self.timeline = Timeline(costs_of(2, **costs), slots, 3)
        self.end = self.timeline.run(self.demand, self.events, np.zeros(len(experts), np.int64)).visit_end.tolist()

    @property
    def spent(self) -> dict[str, int]:
        """Nanoseconds by cause, those that are not zero."""
        total = dict(zip(CAUSES, self.timeline.spent.sum(axis=0).tolist(), strict=True))
        return {cause: ns for cause, ns in total.items() if ns}


def test_demand_loads_wait_for_the_gate_and_are_computed_as_they_arrive() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-23 dense, 23-33 stall, 33-36 B, 36-43 stall, 43-46 C
    link      5-15 A | 23-33 B, 33-43 C
    """
    script = Script([[(LOAD, 0, 0)], [(LOAD, 1, 1), (LOAD, 2, 2)]])
    assert script.end == [18, 46]
    assert script.spent == {"dense": 10, "experts": 9, "demand": 27}
    assert script.timeline.link_busy_ns == 30


def test_a_prefetch_hides_behind_compute() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-38 dense, 38-41 B
    link      5-15 A, 15-25 B ahead
    """
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(HIT_PREFETCHED, 1, 1)]], dense_ns=np.array([5, 20], np.int64))
    assert script.end == [18, 41]
    assert script.spent == {"dense": 25, "experts": 6, "demand": 10}
    assert script.timeline.prefetches.tolist() == [1, 0, 0]


def test_a_prefetch_that_arrives_as_the_gate_chooses_is_there() -> None:
    """link 15-25 B ahead; layer 1 knows its choice at 18 + 7 = 25: no wait, and not late."""
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(HIT_PREFETCHED, 1, 1)]], dense_ns=np.array([5, 7], np.int64))
    assert script.end == [18, 28]
    assert script.timeline.prefetches.tolist() == [1, 0, 0]


def test_a_prefetch_in_flight_is_waited_for() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-23 dense, 23-25 stall (late), 25-28 B
    link      5-15 A, 15-25 B ahead
    """
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(HIT_PREFETCHED, 1, 1)]])
    assert script.end == [18, 28]
    assert script.spent == {"dense": 10, "experts": 6, "demand": 10, "late_prefetch": 2}
    assert script.timeline.prefetches.tolist() == [0, 1, 0]


def test_a_queued_prefetch_that_is_demanded_is_promoted() -> None:
    """
    Two experts are prefetched, B and C; only C, the second in the queue, is demanded, beside the missing A'.
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-23 dense, 23-35 stall, 35-38 C, 38-45 stall, 45-48 A'
    link      5-15 A, 15-25 B ahead, 25-35 C, 35-45 A'
    B was started before the choice was known and is not aborted; C goes before A' although both are wanted.
    """
    script = Script(
        [[(LOAD, 0, 0), (PREFETCH, 1, 1), (PREFETCH, 2, 2)], [(HIT_PREFETCHED, 2, 2), (DROP, 1, 1), (LOAD, 0, 3)]]
    )
    assert script.end == [18, 48]
    assert script.spent["late_prefetch"] == 12
    assert script.spent["demand"] + script.spent.get("link_busy", 0) == 10 + 7
    assert script.timeline.prefetches.tolist() == [0, 1, 1]
    assert script.timeline.link_busy_ns == 40


def test_demand_waits_behind_a_started_prefetch() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-23 dense, 23-25 link busy, 25-35 demand, 35-38 C
    link      5-15 A, 15-25 B ahead, 25-35 C
    """
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(DROP, 1, 1), (LOAD, 2, 2)]])
    assert script.end == [18, 38]
    assert script.spent == {"dense": 10, "experts": 6, "demand": 20, "link_busy": 2}
    assert script.timeline.prefetches.tolist() == [0, 0, 1]


def test_a_dropped_prefetch_that_was_not_started_costs_nothing() -> None:
    """
    B's copy occupies the link until 25; C waits behind it and is given up at 23, before it starts.
    compute   0-5 dense, 5-15 stall, 15-18 A | 18-23 dense, 23-25 stall, 25-28 B
    link      5-15 A, 15-25 B ahead; C never
    """
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1), (PREFETCH, 2, 2)], [(HIT_PREFETCHED, 1, 1), (DROP, 2, 2)]])
    assert script.end == [18, 28]
    assert script.timeline.link_busy_ns == 20
    assert script.timeline.prefetches.tolist() == [0, 1, 1]


def test_a_prefetch_yields_to_demand_at_the_same_instant() -> None:
    """
    At 15 the link is free for B, requested at 5; at 15 layer 1 also knows that it needs C, which goes first.
    compute   0-5 dense, 5-15 stall, (A takes no time) | (no dense part) 15-25 stall
    link      5-15 A, 15-25 C; B never
    """
    script = Script(
        [[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(DROP, 1, 1), (LOAD, 2, 2)]], dense_ns=np.array([5, 0], np.int64), expert=0
    )
    assert script.end == [15, 25]
    assert script.timeline.link_busy_ns == 20
    assert script.spent == {"dense": 5, "demand": 20}


def test_streaming_through_one_buffer_waits_for_the_computation() -> None:
    """
    One slot, nothing overlaps:
    compute   0-5 dense, 5-15 stall, 15-18 A, 18-28 stall, 28-31 B, 31-41 stall, 41-44 C
    link      5-15 A, 18-28 B, 31-41 C
    Two slots: B is copied while A is computed, and C goes where A was:
    compute   0-5 dense, 5-15 stall, 15-18 A, 18-25 stall, 25-28 B, 28-35 stall, 35-38 C
    link      5-15 A, 15-25 B, 25-35 C
    """
    one = Script([[(STREAM, 0, 0), (STREAM, 1, 0), (STREAM, 2, 0)], []], slots=1)
    assert one.end[0] == 44
    two = Script([[(STREAM, 0, 0), (STREAM, 1, 1), (STREAM, 2, 0)], []], slots=2)
    assert two.end[0] == 38


def test_resident_experts_are_computed_while_misses_arrive() -> None:
    """
    step 0: A and B loaded, 5-15, 15-25; computed 15-18, 25-28; layer 1 28-33 dense.
    step 1: 33-38 dense, then A, B (resident) 38-44 while C is copied 38-48; 48-51 C.
    """
    script = Script([[(LOAD, 0, 0), (LOAD, 1, 1)], [], [(HIT, 0, 0), (HIT, 1, 1), (LOAD, 2, 2)], []])
    assert script.end == [28, 33, 51, 56]
    assert script.spent == {"dense": 20, "experts": 15, "demand": 10 + 7 + 4}


def test_every_cost_has_its_place() -> None:
    """Step 100; dense: memory 5 + 7 context tokens of 2 ns = 19 against 3 tokens of 4 ns = 12; overhead 30 + 40;
    experts: 3 ns of memory against 3 tokens of 2.5 ns = 7, and 6 of overhead."""
    experts = np.zeros((3, 1, 1), np.uint16)
    demand = demand_of(experts, 1, np.array([0, 3]), np.zeros(3, np.uint8))
    events = Events.of([(0, LOAD, 0, 0)], 1)
    costs = costs_of(
        1,
        expert_overhead_ns=6,
        copy_overhead_ns=0,
        step_ns=100,
        context_ps=2000,
        dense_token_ps=4000,
        layer_overhead_ns=30,
        readback_ns=40,
        expert_token_ps=2500,
    )
    timeline = Timeline(costs, 1, 1)
    end = timeline.run(demand, events, np.array([7], np.int64)).visit_end
    assert timeline.spent[0].tolist() == [119, 13, 0, 70, 10, 0, 0, 0, 0]
    assert timeline.spent[1].tolist() == [0] * 9
    assert end.tolist() == [212]


def random_costs(layers: int, seed: int) -> Costs:
    rng = np.random.default_rng(seed)

    def spread(most: int) -> int:
        return int(rng.integers(0, most + 1))

    def ns(most: int) -> np.ndarray:
        return rng.integers(0, most + 1, layers).astype(np.int64)

    most = int(rng.choice([3, 40]))
    return costs_of(
        layers,
        chunk_ns=(copy := 1 + ns(most)[:, None]),
        rest_ns=copy,
        expert_ns=ns(int(rng.choice([0, 4, 30]))),
        dense_ns=ns(int(rng.choice([0, 10, 80]))),
        expert_token_ps=spread(4000),
        expert_overhead_ns=spread(3),
        copy_overhead_ns=spread(3),
        dense_token_ps=spread(4000),
        context_ps=spread(300),
        layer_overhead_ns=spread(3),
        readback_ns=spread(3),
        step_ns=spread(20),
    )


def timed(
    scenario: Scenario, costs: Costs, chunk: int = 1 << 20
) -> tuple[np.ndarray, Timeline, list[tuple[Demand, Events]]]:
    trace, spec = scenario.trace, scenario.spec
    slots = sum(min(c, spec.layers * spec.experts) for c in spec.capacity) + spec.staging
    timeline = Timeline(costs, slots, spec.experts)
    context = context_of(scenario)
    pieces, ends = list(iter_decisions(trace, spec, chunk=chunk)), []
    for demand, events in pieces:
        ends.append(
            timeline.run(demand, events, context[demand.first_step : demand.first_step + demand.steps]).visit_end
        )
    return np.concatenate(ends), timeline, pieces


def context_of(scenario: Scenario) -> np.ndarray:
    return np.array([sum(scenario.trace.position[rows] + 1) for rows in scenario.step_rows()], np.int64)


def in_simpy(scenario: Scenario, costs: Costs, pieces: list[tuple[Demand, Events]]) -> Machine:
    """The same decisions on the SimPy machine; what a visit demands is counted anew from the routing."""
    events: dict[int, list[tuple[int, int, int]]] = {}
    for _, piece in pieces:
        for visit, kind, key, slot in piece.rows():
            events.setdefault(visit, []).append((kind, key, slot))
    rows, context = scenario.step_rows(), context_of(scenario)
    visits = []
    for number, (layer, chosen) in enumerate(scenario.references()):
        step = number // scenario.spec.layers
        tokens_of = Counter(layer * scenario.spec.experts + expert for expert in chosen)
        visits.append(Visit(layer, len(rows[step]), int(context[step]), tokens_of, events.get(number, [])))
    machine = Machine(costs, scenario.spec.experts, visits)
    machine.run()
    return machine


VARIANTS = [("lru", "gate", False), ("lru", "gate", True), ("lru", "oracle", False), ("lru", "none", False)]


@pytest.mark.parametrize(("eviction", "prefetch", "into_cache"), VARIANTS)
@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100))
def test_times_equal_the_simpy_model(eviction: str, prefetch: str, into_cache: bool, seed: int, chunk: int) -> None:
    scenario = random_scenario(seed, eviction, prefetch, into_cache=into_cache)
    costs = random_costs(scenario.spec.layers, seed)
    end, timeline, pieces = timed(scenario, costs, chunk)
    machine = in_simpy(scenario, costs, pieces)
    assert end.tolist() == machine.visit_end
    assert timed(scenario, costs)[0].tolist() == machine.visit_end
    # What has been spent adds up to the time that has passed, and covers compute and every copy waited for.
    assert timeline.spent.sum() == end[-1]
    assert timeline.spent.min() >= 0
    assert timeline.spent[:, :4].sum() <= end[-1]
    demanded = [
        int(costs.copy_ns[key // scenario.spec.experts])
        for _, events in pieces
        for kind, key in zip(events.kind.tolist(), events.expert.tolist(), strict=True)
        if kind in (LOAD, STREAM)
    ]
    assert sum(demanded) <= end[-1]


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, cause=st.sampled_from(["rest_ns", "dense_ns", "layer_overhead_ns", "readback_ns", "step_ns"]))
def test_without_prefetching_less_of_anything_is_never_slower(seed: int, cause: str) -> None:
    scenario = random_scenario(seed)
    costs = random_costs(scenario.spec.layers, seed)
    cheaper = replace(costs, **{cause: getattr(costs, cause) // 2})
    assert (timed(scenario, cheaper)[0] <= timed(scenario, costs)[0]).all()


@pytest.mark.parametrize(
    "into_cache",
    [
        pytest.param(False, id="staging"),
        pytest.param(True, id="cache"),
    ],
)
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_every_prefetch_is_useful_late_wasted_or_still_unused(into_cache: bool, seed: int) -> None:
    scenario = random_scenario(seed, "lru", "gate", into_cache=into_cache)
    _, timeline, pieces = timed(scenario, costs_of(scenario.spec.layers))
    unused: set[int] = set()
    requested = 0
    for _, events in pieces:
        for kind, key in zip(events.kind.tolist(), events.expert.tolist(), strict=True):
            if kind == PREFETCH:
                requested += 1
                unused.add(key)
            elif kind <= HIT_PREFETCHED or kind in (EVICT, DROP):
                unused.discard(key)
    assert timeline.prefetches.sum() + len(unused) == requested
