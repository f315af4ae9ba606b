"""Times that fit: what a profile and a trace could add up to is refused before it wraps around."""

import numpy as np
import pytest
from msgspec.structs import replace

from engine.hardware import load_hardware
from engine.hardware.profile import Link, Rate
from engine.simulator.costs import MOST_CHUNKS
from engine.simulator.limits import Work, check_bytes, check_times
from tests.engine.simulator.test_timeline_costs import MACHINE, MIB, costs
from tracekit.errors import HardwareError, TraceError

SMALL = Work.of(np.array([4, 1, 1]), np.array([10, 5, 6]), top_k=2, experts=8, suggested=0)


def work(steps: int, suggested: int = 0) -> Work:
    return Work.of(np.ones(steps, np.int32), np.ones(steps, np.int64), top_k=2, experts=8, suggested=suggested)


def test_work_counts_what_a_step_may_ask() -> None:
    """Four tokens of two experts each ask for eight at most, as many as there are; one token for two."""
    assert (SMALL.steps, SMALL.tokens, SMALL.context, SMALL.demanded) == (3, 6, 21, 8 + 2 + 2)
    assert (SMALL.step_tokens, SMALL.step_context) == (4, 10)
    assert work(5, suggested=3).prefetched == 15


@pytest.mark.parametrize("name", ["t4", "rtx3060", "h100"])
def test_real_machines_are_far_from_the_limit(name: str) -> None:
    """A million steps of 64 layers of 300 MiB experts take hours, not the seventy years that can be counted."""
    check_times(work(10**6, suggested=2), costs(load_hardware(name), layers=64, size=300 * MIB))


def test_the_field_that_makes_it_so_long_is_named() -> None:
    slow = replace(MACHINE, link=replace(MACHINE.link, host_to_device_bytes_per_s=1000))
    with pytest.raises(HardwareError, match=r"^link\.host_to_device_bytes_per_s: "):
        check_times(work(1000), costs(slow, size=1 << 40))
    late = MACHINE.with_engine(replace(MACHINE.engine, overhead=replace(MACHINE.overhead, per_layer_ns=10**10)))
    with pytest.raises(HardwareError, match=r"^overhead\.per_layer_ns: "):
        check_times(work(2 * 10**8), costs(late))


def test_one_piece_of_work_that_does_not_fit_is_refused_at_once() -> None:
    slow = replace(MACHINE, link=replace(MACHINE.link, host_to_device_bytes_per_s=1000))
    with pytest.raises(HardwareError, match=r"^link\.host_to_device_bytes_per_s: one piece"):
        costs(slow, size=1 << 50)


def test_bytes_are_counted_too() -> None:
    check_bytes(SMALL, [1 << 40] * 2)
    with pytest.raises(TraceError, match="expert_bytes"):
        check_bytes(work(10**4), [1 << 50] * 2)


def test_chunks_are_bounded() -> None:
    chunked = replace(MACHINE, link=replace(MACHINE.link, chunk_bytes=MIB))
    assert costs(chunked, size=MOST_CHUNKS * MIB).chunks.tolist() == [MOST_CHUNKS] * 2
    with pytest.raises(HardwareError, match=r"link\.chunk_bytes"):
        costs(chunked, size=MOST_CHUNKS * MIB + 1)
    with pytest.raises(HardwareError, match="over all layers"):
        costs(chunked, layers=100, size=MOST_CHUNKS * MIB)


def test_times_of_many_sizes_are_those_of_each() -> None:
    rates = [Rate(bytes=1000, bytes_per_s=10**9), Rate(bytes=10**6, bytes_per_s=7 * 10**9)]
    rates.append(Rate(bytes=10**8, bytes_per_s=12 * 10**9 + 7))
    link = Link(host_to_device_bytes_per_s=999_983, latency_ns=0, copy_engines=1)
    pageable = replace(link, rates=rates, host_memory="pageable", pageable_bytes_per_s=77_777)
    sizes = np.random.default_rng(5).integers(0, 2 * 10**8, 300).astype(object)
    sizes = np.concatenate([sizes, np.array([0, 999, 1000, 1001, 10**6, 10**8, 10**8 + 1, 1 << 50], object)])
    for one in (link, replace(link, rates=rates), pageable):
        machine = replace(MACHINE, link=one)
        assert machine.wire_times(sizes).tolist() == [machine.wire_ns(size) for size in sizes]
