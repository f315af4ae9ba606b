"""Sensitivities: each is a replay on a better machine; without prefetching and without a lane none is slower."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hardware import HardwareProfile, Rate, load_hardware
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.replay.result import Sensitivity
from engine.replay.sensitivities import PARTS, TIMES, enlarged, improved
from tests.engine.replay.test_bounds import random_machine, random_trace
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import PlanError
from tracekit.trace import Trace

BYTES = 1 << 20


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    rng = np.random.default_rng(5)
    return make_trace(
        tmp_path_factory.mktemp("sensitivities") / "t.trace",
        random_experts(rng, 30, layers=3),
        num_experts=8,
        phase=(np.arange(30) >= 4).astype(np.uint8),
        lookahead={1: rng.normal(size=(30, 2, 8)).astype(np.float16)},
        expert_bytes=[BYTES] * 3,
        expert_params=[BYTES // 2] * 3,
    )


def speed(trace: Trace, plan: Plan, machine: HardwareProfile) -> float:
    time = replay(trace, plan, machine, bounds=False).time
    assert time is not None and time.tokens_per_second is not None
    return time.tokens_per_second


@pytest.mark.parametrize("prefetch", ["none", "gate"])
@pytest.mark.parametrize("where", ["copy", "auto", "split"])
def test_each_is_a_replay_on_a_better_machine(trace: Trace, prefetch: str, where: str) -> None:
    plan, machine = Plan("3/layer", prefetch=prefetch, miss=where), load_hardware("rtx3060", "graph-fused")
    found = replay(trace, plan, machine, bounds=False, sensitivities=True).sensitivities
    assert found is not None and [(one.part, one.times) for one in found] == [
        (part, float(times)) for part in PARTS for times in TIMES
    ]
    now = speed(trace, plan, machine)
    for one in found:
        times = Fraction(one.times)
        if one.part == "memory":
            expected = speed(trace, enlarged(plan, times, [8] * 3), machine)
        else:
            expected = speed(trace, plan, improved(machine, one.part, times))
        assert one.tokens_per_second == pytest.approx(expected, rel=1e-12)
        assert one.gain == pytest.approx(expected / now - 1, rel=1e-9, abs=1e-12)


def test_what_a_copy_waits_for_is_what_helps(trace: Trace) -> None:
    """No slots: everything is copied, one after the other. By hand: 6 copies a step of 10 us and 83.2 us each."""
    machine = load_hardware("rtx3060", "graph-fused")
    gains = {(one.part, one.times): one.gain for one in found_of(trace, Plan("0/layer"), machine)}
    assert max(gains, key=gains.__getitem__) == ("link", 2.0)
    assert gains["host_bandwidth", 2.0] == 0, "the host computes nothing"
    assert gains["memory", 2.0] == 0, "twice nothing"
    assert 0 < gains["link", 1.25] <= 0.25 and 0.25 < gains["link", 2.0] <= 1


def found_of(trace: Trace, plan: Plan, machine: HardwareProfile) -> list[Sensitivity]:
    found = replay(trace, plan, machine, bounds=False, sensitivities=True).sensitivities
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        ("3/layer", "6/layer"),
        ("5/layer", "8/layer"),
        ("20", "24"),
        ("3MiB", "6291456B"),
        ("30%", "60.000000%"),
        ("60%/layer", "100.000000%/layer"),
    ],
)
def test_twice_the_memory(capacity: str, expected: str) -> None:
    assert enlarged(Plan(capacity), Fraction(2), [8, 8, 8]).cache.capacity == expected


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_without_prefetching_and_without_a_lane_no_better_machine_is_slower(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Times that are divided are rounded down and rates too, so that a better one may miss a nanosecond."""
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path_factory.mktemp("better")), random_machine(rng)
    plan = Plan(f"{rng.integers(0, trace.num_experts + 1)}/layer", compute_experts=str(rng.choice(["each", "fused"])))
    for one in found_of(trace, plan, machine):
        assert one.gain >= -1e-6, one


def test_a_link_whose_larger_copies_take_as_long_stays_one(tmp_path: Path) -> None:
    """Both sizes take 3 ns: rounding must not make the larger the faster one, which a profile may not say."""
    link = load_hardware("t4").link
    rates = [Rate(bytes=3, bytes_per_s=1_000_001), Rate(bytes=7, bytes_per_s=2_333_335)]
    machine = msgspec.structs.replace(load_hardware("t4"), link=msgspec.structs.replace(link, rates=rates))
    for times in TIMES:
        better = improved(machine, "link", times)
        assert better.wire_ns(3) <= better.wire_ns(7) <= machine.wire_ns(7)


def test_a_machine_is_needed(trace: Trace) -> None:
    with pytest.raises(PlanError, match="sensitivities are of a machine"):
        replay(trace, Plan("3/layer"), sensitivities=True)
