"""Hand-drawn scenarios of fused experts: one call computes a visit's experts once the last of them is there.

As in test_timeline.py: two layers of three experts, a copy takes 10 ns, an expert 3, a dense part 5. A call takes 2.
"""

from engine.simulator.log import BEGIN, COPY, CPU_EXPERT, END, EXPERT, KEY, WHAT
from tests.helpers.reference_cache import BYPASS, DROP, HIT, HIT_PREFETCHED, HOST, LOAD, PREFETCH
from tests.helpers.timelines import Script


def experts(script: Script) -> list[tuple[int, int, int]]:
    """When each expert is computed on the device: key, begin, end."""
    return [(row[KEY], row[BEGIN], row[END]) for row in script.timeline.log.tolist() if row[WHAT] == EXPERT]


def test_nothing_is_computed_before_the_last_copy_arrives() -> None:
    """
    compute   0-5 dense, 5-25 stall, 25-36 A, B and C | 36-41 dense; nothing is demanded, so nothing is called
    link      5-15 B, 15-25 C
    """
    script = Script([[(HIT, 0, 0), (LOAD, 1, 1), (LOAD, 2, 2)], []], call_ns=2)
    assert script.end == [36, 41]
    assert experts(script) == [(0, 25, 30), (1, 30, 33), (2, 33, 36)]
    assert script.spent == {"dense": 10, "demand": 20, "experts": 11}


def test_a_resident_expert_is_computed_meanwhile_where_each_is_by_itself() -> None:
    """compute  5-8 A, 8-15 stall, 15-18 B, 18-25 stall, 25-28 C: the same decisions without fusing."""
    script = Script([[(HIT, 0, 0), (LOAD, 1, 1), (LOAD, 2, 2)], []])
    assert script.end == [28, 33]
    assert script.spent == {"dense": 10, "demand": 14, "experts": 9}


def test_a_late_prefetch_and_a_missing_expert_are_waited_for_in_turn() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-20 A | 20-25 dense, 25 B is there just now, 25-35 stall, 35-43 B and C
    link      5-15 A, 15-25 B ahead, 25-35 C
    One nanosecond less of dense work, and B is late by one.
    """
    visits = [[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(HIT_PREFETCHED, 1, 1), (LOAD, 2, 2)]]
    script = Script(visits, call_ns=2)
    assert script.end == [20, 43]
    assert script.timeline.prefetches.tolist() == [1, 0, 0]
    late = Script(visits, call_ns=2, dense=4)
    assert late.end == [19, 42]
    assert late.spent == {"dense": 8, "demand": 10 + 10, "late_prefetch": 1, "experts": 5 + 8}
    assert late.timeline.prefetches.tolist() == [0, 1, 0]


def test_a_copy_into_a_slot_of_the_visit_waits_for_a_call() -> None:
    """
    A and C share a buffer: what is there is computed before C is copied into it.
    compute   0-5 dense, 5-25 stall, 25-33 A and B, 33-43 stall, 43-48 C
    link      5-15 A, 15-25 B, 33-43 C
    """
    script = Script([[(BYPASS, 0, 0), (BYPASS, 1, 1), (BYPASS, 2, 0)], []], call_ns=2)
    assert script.end[0] == 48
    assert experts(script) == [(0, 25, 30), (1, 30, 33), (2, 43, 48)]
    assert [(row[BEGIN], row[END]) for row in script.timeline.log.tolist() if row[WHAT] == COPY] == [
        (5, 15),
        (15, 25),
        (33, 43),
    ]


def test_a_slot_is_free_when_its_call_is_done() -> None:
    """B is prefetched into the slot of A, which was the call's first: 20-30 A, 30-35 the call, 35-45 B ahead."""
    script = Script([[(LOAD, 0, 0), (DROP, 0, 0), (PREFETCH, 1, 0)], [(HIT_PREFETCHED, 1, 0)]], call_ns=2, dense=20)
    assert [(row[BEGIN], row[END]) for row in script.timeline.log.tolist() if row[WHAT] == COPY][1] == (35, 45)


def test_a_call_is_of_what_the_device_computes() -> None:
    """
    compute   0-5 dense, 5-15 stall, 15-20 B, 20-27 stall (CPU)
    cpu       5-27 A
    """
    script = Script([[(LOAD, 1, 1), (HOST, 0, -1)], []], cpu=1, cpu_overhead_ns=22, call_ns=2)
    rows = script.timeline.log.tolist()
    assert [(row[KEY], row[END]) for row in rows if row[WHAT] == CPU_EXPERT] == [(0, 27)]
    assert script.end[0] == 27


def test_overlapped_calls_compute_what_is_there_first() -> None:
    """
    compute   0-5 dense, 5-10 A, 10-25 stall, 25-33 B and C | 33-38 dense
    link      5-15 B, 15-25 C
    """
    script = Script([[(HIT, 0, 0), (LOAD, 1, 1), (LOAD, 2, 2)], []], call_ns=2, overlapped=1)
    assert script.end == [33, 38]
    assert experts(script) == [(0, 5, 10), (1, 25, 30), (2, 30, 33)]
    assert script.spent == {"dense": 10, "demand": 15, "experts": 5 + 8}
