"""Hand-drawn scenarios of copy engines, chunks, the disk, the CPU lane and dequantisation, to the nanosecond.

As in test_timeline.py: two layers of three experts, a copy takes 10 ns, an expert 3, a dense part 5.
"""

from typing import Any

import numpy as np
import pytest

from engine.simulator.log import BEGIN, COLUMNS, COPY, CPU_EXPERT, DISK_READ, END, ENGINE, WHAT
from tests.helpers.reference_cache import ADMIT, BYPASS, DROP, EVICT, HIT, HIT_PREFETCHED, HOST, LOAD, PREFETCH
from tests.helpers.timelines import Script

EACH = np.ones(2, np.int64)


def in_chunks(number: int, ns: int) -> dict[str, Any]:
    """Prefetches in so many chunks of `ns`; what is left of one takes as long as its chunks."""
    chunk_ns = np.full((2, number), ns, np.int64)
    return {"chunks": EACH * number, "chunk_ns": chunk_ns, "rest_ns": chunk_ns[:, ::-1].cumsum(axis=1)[:, ::-1]}


@pytest.mark.parametrize(
    ("engines", "copies", "end"),
    [
        (1, [(5, 19, 0), (19, 33, 0), (33, 47, 0)], 50),
        (2, [(5, 19, 0), (5, 29, 1), (19, 39, 0)], 42),
    ],
)
def test_a_second_engine_hides_setup(engines: int, copies: list[tuple[int, int, int]], end: int) -> None:
    """
    Setup takes 4, the wire 10. One engine: 5-19 A, 19-33 B, 33-47 C. Two:
    engine 0  5-9 setup A, 9-19 A             | 19-23 setup C, 29-39 C
    engine 1  5-9 setup B,       19-29 B
    """
    script = Script([[(LOAD, 0, 0), (LOAD, 1, 1), (LOAD, 2, 2)], []], setup_ns=4, copy_engines=engines)
    rows = script.timeline.log
    assert [(row[BEGIN], row[END], row[ENGINE]) for row in rows.tolist() if row[WHAT] == COPY] == copies
    assert script.end[0] == end
    assert script.timeline.link_busy_ns == end - 3 - 5


@pytest.mark.parametrize(("slot", "end"), [(1, 46), (2, 44)])
def test_a_copy_waits_for_the_one_that_its_slot_still_receives(slot: int, end: int) -> None:
    """
    Two engines, setup 4. B is copied ahead on engine 1 and given up at 27, when 2 ns of it are still to come.
    engine 0  5-9 setup A, 9-19 A   | into another slot: 27-31 setup C, 31-41 C
    engine 1  5-9 setup B, 19-29 B  | into B's:          29-33 setup C, 33-43 C  (engine 0)
    """
    script = Script([[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(DROP, 1, 1), (BYPASS, 2, slot)]], setup_ns=4, copy_engines=2)
    assert script.end == [22, end]
    assert script.spent == {"dense": 10, "experts": 6, "demand": 14 + end - 3 - 29, "link_busy": 2}


@pytest.mark.parametrize(("chunks", "ns", "end"), [(1, 10, 38), (2, 5, 33)])
def test_demand_goes_before_the_next_chunk(chunks: int, ns: int, end: int) -> None:
    """
    Layer 1's dense part lasts 1, so that its choice is known at 19.
    in one    5-15 A, 15-25 B ahead,      25-35 C
    in two    5-15 A, 15-20 half of B,    20-30 C; the other half never
    """
    script = Script(
        [[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(DROP, 1, 1), (LOAD, 2, 2)]],
        dense_ns=np.array([5, 1], np.int64),
        **in_chunks(chunks, ns),
    )
    assert script.end == [18, end]


def test_the_rest_of_a_demanded_prefetch_goes_at_once_and_in_one() -> None:
    """
    Four chunks of 3, each with a setup of 1; layer 1's choice is known at 24 of
    link  5-18 A, 18-22 B1, 22-26 B2, | 26-33 B3 and B4 with one setup, 33-46 C
    """
    script = Script(
        [[(LOAD, 0, 0), (PREFETCH, 1, 1)], [(HIT_PREFETCHED, 1, 1), (LOAD, 2, 2)]],
        dense_ns=np.array([5, 3], np.int64),
        setup_ns=1,
        **in_chunks(4, 3),
    )
    assert script.end == [21, 49]
    assert script.spent == {"dense": 8, "experts": 9, "demand": 13 + 10, "late_prefetch": 9}
    assert script.timeline.prefetches.tolist() == [0, 1, 0]


def test_a_missing_expert_comes_from_disk_first() -> None:
    """
    compute   0-5 dense, 5-25 disk, 25-35 demand, 35-38 A | 38-43 dense
    disk      5-25 A
    link      25-35 A
    """
    script = Script([[(LOAD, 0, 0)], []], read_ns=20 * EACH, host_bytes=1)
    assert script.end == [38, 43]
    assert script.spent == {"dense": 10, "experts": 3, "disk": 20, "demand": 10}


def test_reads_in_lanes_run_together_and_slow_each_other() -> None:
    """Alone a read takes 20, as one of two 30. C waits until A's lane is free, and is then one of two again.

    disk      5-25 A, 5-35 B, 25-55 C
    link      25-35 A, 35-45 B, 55-65 C
    """
    lanes_ns = np.array([[20, 30], [20, 30]])
    events = [(LOAD, 0, 0), (LOAD, 1, 1), (LOAD, 2, 2)]
    script = Script([events, []], read_ns=20 * EACH, lanes_ns=lanes_ns, host_bytes=9)
    rows = script.timeline.log.tolist()
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == DISK_READ] == [[5, 25], [5, 35], [25, 55]]
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == COPY] == [[25, 35], [35, 45], [55, 65]]
    assert script.timeline.disk_busy_ns == 50, "it reads from 5 to 55, however many at a time"


def test_the_cache_takes_its_time_before_anything_is_asked_for() -> None:
    """Two lookups at 2 and one insert at 3: the copy that would begin at 5 begins at 12.

    compute   0-5 dense, 5-12 overhead, 12-15 A, 15-22 demand, 22-25 B | 25-30 dense, 30-33 the prefetch's insert
    link      12-22 B
    """
    bypass = Script([[(HIT, 0, 0), (BYPASS, 1, 1)], []], lookup_ns=2, insert_ns=3)
    assert bypass.end == [22, 27], "it is looked up and not inserted"
    script = Script([[(HIT, 0, 0), (LOAD, 1, 1)], [(PREFETCH, 2, 2)]], lookup_ns=2, insert_ns=3)
    rows = script.timeline.log.tolist()
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == COPY] == [[12, 22]]
    assert script.end == [25, 33]
    assert script.spent["overhead"] == 7 + 3


@pytest.mark.parametrize(("host_bytes", "reads"), [(0, 3), (1, 3), (2, 2), (3, 2)])
def test_host_memory_keeps_what_was_copied_last(host_bytes: int, reads: int) -> None:
    """A, B and A again pass through one slot; the second time A is still in host memory if that holds two."""
    a, b = [(EVICT, 1, 0), (LOAD, 0, 0)], [(EVICT, 0, 0), (LOAD, 1, 0)]
    script = Script([a[1:], [], b, [], a, []], read_ns=20 * EACH, host_bytes=host_bytes)
    assert script.timeline.disk_busy_ns == reads * 20
    assert script.spent["disk"] == reads * 20


def test_a_copy_during_a_read_is_slower() -> None:
    """
    disk      5-25 A, 25-45 B
    link      25-40 A (half as long again, for B is being read), 45-55 B
    compute   0-5 dense, 5-25 disk, 25-40 demand, 40-43 A, 43-48 disk, 48-55 demand, 55-58 B
    B's read puts its copy off by 5: the link was free at 40.
    """
    script = Script([[(LOAD, 0, 0), (LOAD, 1, 1)], []], read_ns=20 * EACH, host_bytes=9, slowdown_percent=50)
    rows = script.timeline.log.tolist()
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == DISK_READ] == [[5, 25], [25, 45]]
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == COPY] == [[25, 40], [45, 55]]
    assert script.spent == {"dense": 10, "experts": 6, "disk": 20 + 5, "demand": 15 + 7}


def test_the_host_computes_where_the_expert_lies() -> None:
    """Nothing is copied. compute 0-5 dense, 5-17 cpu | 17-22 dense; cpu 5-17 A"""
    script = Script([[(HOST, 0, -1)], []], cpu=1, cpu_expert_ns=12 * EACH)
    assert script.end == [17, 22]
    assert script.spent == {"dense": 10, "cpu": 12}
    assert (script.timeline.link_busy_ns, script.timeline.cpu_busy_ns) == (0, 12)


def test_device_and_host_share_a_visit() -> None:
    """
    Counted from the visit's begin:
    compute   0-5 dense, 5-8 A, 8-15 demand, 15-18 B, 18-25 cpu
    cpu       5-25 C
    link      5-15 B
    """
    visit = [(HIT, 0, 0), (LOAD, 1, 1), (HOST, 2, -1)]
    script = Script([[(LOAD, 0, 0)], [], visit, []], cpu=1, cpu_expert_ns=20 * EACH)
    begin = script.end[1]
    assert script.end[2] - begin == 25
    assert script.timeline.cpu_busy_ns == 20
    assert script.spent["cpu"] == 7


def test_an_admitted_expert_is_copied_and_nobody_waits_until_it_is_demanded() -> None:
    """
    A copy takes 40, the host 2: A is computed 5-7 and is on its way until 45 when step 1 wants it, at 17.
    compute   0-5 dense, 5-7 cpu | 7-12 dense | 12-17 dense, 17-45 demand, 45-48 A
    """
    script = Script([[(ADMIT, 0, 0)], [], [(HIT, 0, 0)], []], copy=40, cpu=1, cpu_expert_ns=2 * EACH)
    assert script.end[:3] == [7, 12, 48]
    assert script.spent["demand"] == 28
    assert script.timeline.prefetches.tolist() == [0, 0, 0]


def test_demand_goes_before_what_is_admitted() -> None:
    """
    compute   0-5 dense, 5-15 demand, 15-18 B | 18-23 dense
    link      5-15 B, 15-25 A
    """
    script = Script([[(ADMIT, 0, 0), (LOAD, 1, 1)], []], cpu=1, cpu_expert_ns=2 * EACH)
    copies = [row[BEGIN : END + 1] for row in script.timeline.log.tolist() if row[WHAT] == COPY]
    assert copies == [[5, 15], [15, 25]]
    assert script.end == [18, 23]


def test_what_is_evicted_before_its_copy_began_is_not_copied() -> None:
    """
    A and B are admitted at 5, layer 1 takes 1, and step 1 evicts B at 13 for C.
    link      5-15 A, 15-25 C
    compute   0-5 dense, 5-7 cpu | 7-8 dense | 8-13 dense, 13-15 link_busy, 15-25 demand, 25-28 C
    """
    visits = [[(ADMIT, 0, 0), (ADMIT, 1, 1)], [], [(EVICT, 1, 1), (LOAD, 2, 1)], []]
    script = Script(visits, dense_ns=np.array([5, 1], np.int64), cpu=1, cpu_expert_ns=EACH)
    assert script.end[:3] == [7, 8, 28]
    assert script.timeline.link_busy_ns == 20
    assert script.spent == {"dense": 12, "experts": 3, "cpu": 2, "link_busy": 2, "demand": 10}


def test_the_host_reads_from_disk_first() -> None:
    """disk 5-25 A; cpu 25-30 A; compute 0-5 dense, 5-25 disk, 25-30 cpu"""
    script = Script([[(HOST, 0, -1)], []], cpu=1, cpu_expert_ns=5 * EACH, read_ns=20 * EACH, host_bytes=1)
    rows = script.timeline.log.tolist()
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == CPU_EXPERT] == [[25, 30]]
    assert script.spent == {"dense": 10, "disk": 20, "cpu": 5}


def test_copies_and_the_host_slow_each_other() -> None:
    """
    At 5 the host begins first, so A is not slowed; B's copy then begins beside it, C beside B's copy.
    cpu       5-9 A, 9-15 C (half as long again)
    link      5-17 B (a fifth longer)
    compute   0-5 dense, 5-17 demand, 17-20 B
    """
    beside = {"cpu_beside_percent": 50, "copy_beside_percent": 20}
    script = Script([[(HOST, 0, -1), (LOAD, 1, 1), (HOST, 2, -1)], []], cpu=1, cpu_expert_ns=4 * EACH, **beside)
    rows = script.timeline.log.tolist()
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == CPU_EXPERT] == [[5, 9], [9, 15]]
    assert [row[BEGIN : END + 1] for row in rows if row[WHAT] == COPY] == [[5, 17]]
    assert script.end[0] == 20


def test_dequantisation_is_part_of_an_expert_and_booked_apart() -> None:
    """compute 0-5 dense, 5-15 demand, 15-17 A expanded, 17-20 A | 20-25 dense"""
    script = Script([[(LOAD, 0, 0)], []], dequant_ns=2 * EACH)
    assert script.end == [20, 25]
    assert script.spent == {"dense": 10, "experts": 3, "dequantisation": 2, "demand": 10}


def test_a_log_has_its_columns_and_no_row_ends_before_it_begins() -> None:
    script = Script([[(LOAD, 0, 0)], [(LOAD, 1, 1)]])
    assert script.timeline.log.shape[1] == COLUMNS
    assert (script.timeline.log[:, BEGIN] <= script.timeline.log[:, END]).all()
