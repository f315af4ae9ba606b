"""The timeline against hand-drawn scenarios of one link and one compute stream, to the nanosecond."""

import numpy as np

from engine.simulator.timeline import Timeline
from policies.events import Events
from tests.helpers.reference_cache import BYPASS, DROP, HIT, HIT_PREFETCHED, LOAD, PREFETCH
from tests.helpers.timelines import Script, costs_of
from tracekit.demand import demand_of


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
    one = Script([[(BYPASS, 0, 0), (BYPASS, 1, 0), (BYPASS, 2, 0)], []], slots=1)
    assert one.end[0] == 44
    two = Script([[(BYPASS, 0, 0), (BYPASS, 1, 1), (BYPASS, 2, 0)], []], slots=2)
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
