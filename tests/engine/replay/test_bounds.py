"""Bounds bound: no plan of a capacity is faster than the machine allows, whatever it decides and whoever computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hardware import (
    Cpu,
    Device,
    EngineProfile,
    ExpertKernel,
    HardwareProfile,
    Link,
    Overhead,
    Rate,
)
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.passes import Steps, run
from engine.replay.replay import replay
from engine.replay.setting import Setting
from engine.replay.speed_bounds import Fewest, least_times
from engine.simulator.least_work import LeastWork, LeastWorks
from engine.simulator.timeline import STALLS
from tests.helpers.thorough import THOROUGH
from tests.helpers.timelines import costs_of
from tests.helpers.traces import make_trace, random_experts
from tracekit.demand import iter_demand
from tracekit.errors import CapacityError, PlanError
from tracekit.rows import DECODE
from tracekit.trace import Trace

BYTES = 1 << 20
POLICIES = ["lru", "random", "static", "belady-bypass"]


def random_trace(rng: np.random.Generator, folder: Path, like: Trace | None = None) -> Trace:
    """One to three requests, decoded alone or together, with prompts or without, of few or many experts."""
    layers, experts, top_k = int(rng.integers(1, 4)), int(rng.integers(2, 9)), 2
    if like is not None:
        layers, experts = like.layers, like.num_experts
    lengths = rng.integers(1, 12, int(rng.integers(1, 4)))
    phase: list[int] = []
    step: list[int] = []
    for length in lengths.tolist():
        prompt = int(rng.choice([0, 0, 1, 4]))
        begin = step[-1] + 1 if step else 0
        step += [begin] * prompt
        phase += [0] * prompt
        for number in range(length):
            together = int(rng.choice([1, 1, 1, 3]))
            step += [begin + (prompt > 0) + number] * together
            phase += [1] * together
    rows = len(step)
    sizes = [BYTES] * layers if rng.random() < 0.7 else [int(s) for s in rng.integers(BYTES // 4, BYTES, layers)]
    return make_trace(
        folder / f"{rng.integers(1 << 40)}.trace",
        random_experts(rng, rows, layers=layers, experts=experts, top_k=top_k),
        num_experts=experts,
        step=step,
        phase=phase,
        position=np.arange(rows),
        lookahead={1: rng.normal(size=(rows, max(layers - 1, 1), experts)).astype(np.float16)} if layers > 1 else None,
        expert_bytes=sizes,
        expert_params=[size // 2 for size in sizes],
    )


def random_machine(rng: np.random.Generator) -> HardwareProfile:
    """Links, devices and CPUs between much slower and much faster than each other; engines that take time, or none."""

    def rate(low: float, high: float) -> int:
        return int(10 ** rng.uniform(low, high))

    def fixed(most: int) -> int:
        return int(rng.integers(0, most)) if rng.random() < 0.5 else 0

    fused = ExpertKernel(
        memory_bandwidth_bytes_per_s=rate(9, 12),
        compute_flops_per_s=rate(9, 13),
        per_call_ns=fixed(100_000),
        per_expert_ns=fixed(10_000),
    )
    rates = [Rate(bytes=BYTES // 8, bytes_per_s=2 * 10**10), Rate(bytes=BYTES, bytes_per_s=10**10)]
    return HardwareProfile(
        name="random",
        description="",
        calibrated=False,
        source=[],
        device=Device(memory_bytes=1 << 40, memory_bandwidth_bytes_per_s=rate(9, 12), compute_flops_per_s=rate(9, 13)),
        link=Link(
            host_to_device_bytes_per_s=rate(9, 11),
            latency_ns=fixed(50_000),
            copy_engines=int(rng.integers(1, 3)),
            chunk_bytes=int(rng.choice([0, 1 << 18])),
            rates=rates if rng.random() < 0.3 else [],
        ),
        cpu=Cpu(
            memory_bandwidth_bytes_per_s=rate(9, 11),
            compute_flops_per_s=rate(9, 12),
            per_expert_ns=fixed(50_000),
            transfer_ns=fixed(50_000),
            slowdown_percent=int(rng.choice([0, 50])),
            link_slowdown_percent=int(rng.choice([0, 50])),
        ),
        engine=EngineProfile(
            name="random",
            overhead=Overhead(
                per_layer_ns=fixed(200_000),
                per_step_ns=fixed(200_000),
                gate_readback_ns=fixed(20_000),
                per_copy_ns=fixed(50_000),
                per_expert_ns=fixed(20_000),
            ),
            fused=fused if rng.random() < 0.5 else None,
            quantised="expanded" if rng.random() < 0.5 else "as-stored",
        ),
    )


def random_plan(rng: np.random.Generator, trace: Trace, capacity: str, where: str) -> Plan:
    policy = str(rng.choice(POLICIES))
    predictor = str(
        rng.choice(["none", "previous-token", "popular", "oracle", *(["gate"] if trace.layers > 1 else [])])
    )
    admission: dict[str, int] = {}
    if where != "copy":  # few kernels: each pair of policies is compiled anew
        policy, predictor = str(rng.choice(["lru", "belady-bypass"])), str(rng.choice(["none", "previous-token"]))
        admission = {} if rng.random() < 0.5 else {"per_step": int(rng.integers(0, 5))}
    future = policy.startswith("belady")
    target = "staging" if future else str(rng.choice(["staging", "cache"]))
    return plan_from_dict(
        {
            "cache": {"capacity": capacity},
            "eviction": {"policy": policy} | ({"profile": str(trace.path)} if policy == "static" else {}),
            "prefetch": {
                "predictor": predictor,
                "count": int(rng.integers(1, 5)),
                "target": target,
                "staging": 2,
            },
            "miss": {"where": where},
            "admission": admission,
            "compute": {"experts": str(rng.choice(["each", "fused"]))},
        }
    )


@settings(max_examples=60 * THOROUGH, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nobody_finds_a_plan_that_beats_its_bound(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Nor another plan's bound: not under the same engine where both have misses on the host or neither, and the
    machine's own not under any engine."""
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path_factory.mktemp("bounds")), random_machine(rng)
    slots = int(rng.integers(0, min(6, trace.num_experts) + 1))
    capacity = str(rng.choice([f"{slots}/layer", str(slots), f"{slots * BYTES // (1 << 20)}MiB", "30%"]))
    found: dict[str, tuple[list[float], list[float]]] = {"copied": ([], []), "hosted": ([], [])}
    alone: list[float] = []
    for _ in range(4):
        where = str(rng.choice(["copy", "copy", "host", "split", "auto"]))
        result = replay(trace, random_plan(rng, trace, capacity, where), machine)
        assert result.time is not None and result.bounds is not None and result.bounds.hardware is not None
        assert result.time.tokens_per_second is not None
        speeds, bounds = found["copied" if where == "copy" else "hosted"]
        speeds.append(result.time.tokens_per_second)
        bounds.append(result.bounds.best_tokens_per_second or np.inf)
        alone.append(result.bounds.hardware.best_tokens_per_second or np.inf)
        for part in (result.bounds.link_tokens_per_second, result.bounds.compute_tokens_per_second):
            assert (part or np.inf) >= bounds[-1] * (1 - 1e-9)
    for speeds, bounds in found.values():
        if speeds:
            assert max(speeds) <= min(bounds) * (1 + 1e-9)
    assert max(speed for speeds, _ in found.values() for speed in speeds) <= min(alone) * (1 + 1e-9)
    with_lane, without = (min(found[kind][1], default=None) for kind in ("hosted", "copied"))
    if with_lane is not None and without is not None:
        assert without <= with_lane * (1 + 1e-9), "the host can only help"
    assert min(min(bounds) for _, bounds in found.values() if bounds) <= min(alone) * (1 + 1e-9)


def begun(rng: np.random.Generator, plan: Plan, trace: Trace, other: Trace) -> Plan:
    """The plan with something in its cache before the first visit, or with a cache that starts anew, or as it was."""
    tables: dict[str, Any] = dict(plan.to_dict())
    follow = bool((np.diff(trace.request) >= 0).all())
    how = str(rng.choice(["pinned", "popular", "warm", "as it was", *(["reset"] * follow)]))
    if how in ("pinned", "popular") and plan.eviction.policy != "static":
        layers = f"layers {rng.integers(trace.layers)}"
        popular = {"pinned": f"popular:{rng.integers(3)}/layer", "profile": str(other.path)}
        tables["placement"] = {"pinned": layers} if how == "pinned" else popular
        if follow and rng.random() < 0.3:
            tables["cache"]["warm"] = "reset"
    elif how == "warm":
        tables["cache"]["warm"] = str(other.path)
    elif how == "reset":
        tables["cache"]["warm"] = "reset"
    return plan_from_dict(tables)


@settings(max_examples=50 * THOROUGH, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_copies_less_or_hits_more_than_its_bound(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Pinned, prefetching, warm, starting anew, behind a warm-up: nor is it faster than its bounds."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("bounds")
    trace, machine = random_trace(rng, folder), random_machine(rng)
    other = random_trace(rng, folder, like=trace)
    slots = int(rng.integers(0, min(6, trace.num_experts) + 1))
    capacity = str(rng.choice([f"{slots}/layer", str(slots), f"{slots * BYTES // (1 << 20)}MiB", "60%"]))
    plan = begun(
        rng, random_plan(rng, trace, capacity, str(rng.choice(["copy", "host", "split", "auto"]))), trace, other
    )
    warm_up = int(rng.choice([0, 0, 1, 5]))
    try:
        found = replay(trace, plan, machine, allow_fitted=True, warm_up=warm_up)
    except (CapacityError, PlanError) as error:  # what is pinned does not fit; nothing is left to count
        assert "pinned" in str(error) or "warm-up" in str(error)
        return
    assert found.bounds is not None and found.bounds.hardware is not None and found.time is not None
    assert found.misses + found.prefetches >= found.bounds.copies
    if plan.prefetch.predictor == "none":
        assert found.bounds.hit_ratio is not None and found.hit_ratio <= found.bounds.hit_ratio
    else:
        assert found.bounds.hit_ratio is None and found.bounds.no_hit_ratio is not None
    for speed in (found.bounds.best_tokens_per_second, found.bounds.hardware.best_tokens_per_second):
        assert (found.time.tokens_per_second or 0) <= (speed or np.inf) * (1 + 1e-9)


def test_a_cache_for_all_layers_may_spare_the_dearer_copies(tmp_path: Path) -> None:
    """One expert in each of two layers, one slot: either may stay, and one copy a step is left, of the smaller."""
    plan, found = plan_from_dict({"cache": {"capacity": "1"}, "placement": {"pinned": "layers 1"}}), []
    for name, sizes in (("alike", [BYTES, BYTES]), ("dearer", [BYTES, 16 * BYTES])):
        trace = make_trace(
            tmp_path / f"{name}.trace",
            np.zeros((20, 2, 1), np.int64),
            num_experts=1,
            expert_bytes=sizes,
            expert_params=[BYTES // 2] * 2,
        )
        result = replay(trace, plan, "rtx3060")
        assert result.bounds is not None and result.misses == result.bounds.copies == 20
        found.append(result.bounds.link_tokens_per_second)
    assert found[0] == found[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), where=st.sampled_from(["copy", "auto"]))
def test_a_larger_cache_never_has_a_lower_bound(
    tmp_path_factory: pytest.TempPathFactory, seed: int, where: str
) -> None:
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path_factory.mktemp("bounds")), random_machine(rng)
    before = (0.0, 0.0)
    for slots in range(min(6, trace.num_experts) + 1):
        plan = plan_from_dict({"cache": {"capacity": f"{slots}/layer"}, "miss": {"where": where}})
        found = replay(trace, plan, machine).bounds
        assert found is not None and found.hardware is not None
        now = (found.best_tokens_per_second or np.inf, found.hardware.best_tokens_per_second or np.inf)
        assert all(after >= earlier * (1 - 1e-9) for earlier, after in zip(before, now, strict=True))
        before = now


def test_a_lane_and_a_link_share_the_misses_by_hand() -> None:
    """12 missing experts, 10 ns to copy, 5 ns on the CPU, 2 ns on the device; 20 lookups, 8 ns of fixed work.

    Alone, missing ones are shared 8 to 4: 40 ns. Computing alone, 40 ns of experts are shared x = 40/7: 8 + 200/7.
    Both: 8 + 5 x = 10 (12 - x) at x = 112/15.
    """
    fewest = Fewest(np.array([5, 7]), 0, together=False)
    work = LeastWork(fixed=8, experts=40, calls=0, dearest=2)
    lane: dict[str, Any] = {"cpu": 1, "cpu_expert_ns": np.array([5, 6]), "cpu_overhead_ns": 0}
    times = least_times(fewest, costs_of(2, copy=10, expert=2, **lane), work)
    assert times == pytest.approx((40, 8 + 200 / 7, 8 + 5 * 112 / 15))
    without = least_times(fewest, costs_of(2, copy=10, expert=2), work)
    assert without == (120, 48, 120)
    assert least_times(fewest._replace(spared=3), costs_of(2, copy=10, expert=2), work).link == 90


def test_the_two_bounds_are_told_apart(tmp_path: Path) -> None:
    """The machine's own is never below the engine's, and is the same under every engine."""
    rng = np.random.default_rng(0)
    trace = make_trace(
        tmp_path / "t.trace",
        random_experts(rng, 20, layers=2),
        num_experts=8,
        expert_bytes=[BYTES] * 2,
        expert_params=[BYTES // 2] * 2,
    )
    found = {}
    for engine in ("transformers-eager", "graph-fused"):
        result = replay(trace, Plan("2/layer", weights=None), "rtx3060", engine=engine)
        assert result.bounds is not None and result.bounds.hardware is not None and result.time is not None
        assert result.time.engine == result.bounds.engine == result.provenance["engine"]["name"] == engine
        assert "engine" not in result.provenance["hardware"]
        assert result.bounds.best_tokens_per_second is not None
        found[engine] = result.bounds
        own = result.bounds.hardware.best_tokens_per_second
        assert own is not None and own >= result.bounds.best_tokens_per_second
    eager, graphs = found.values()
    assert eager.hardware == graphs.hardware
    assert (eager.best_tokens_per_second or 0) < (graphs.best_tokens_per_second or 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), way=st.sampled_from(["each", "fused"]))
def test_the_least_work_is_what_a_timeline_books(tmp_path_factory: pytest.TempPathFactory, seed: int, way: str) -> None:
    """Of a plan that keeps everything, whose copies cost the host nothing to ask for."""
    rng = np.random.default_rng(seed)
    trace, machine = random_trace(rng, tmp_path_factory.mktemp("work")), random_machine(rng)
    overhead = msgspec.structs.replace(machine.overhead, per_copy_ns=0)
    machine = machine.with_engine(msgspec.structs.replace(machine.engine, overhead=overhead))
    setting = Setting.of(trace.manifest, Plan("100%", compute_experts=way), machine)
    (done,) = run(trace, setting.spec, [setting.target])
    assert setting.costs is not None and done.timeline is not None
    works, context = LeastWorks([setting.costs]), Steps.of(trace).context
    for demand in iter_demand(trace):
        works.add(demand, context[demand.first_step : demand.first_step + demand.steps])
    (work,) = works.found
    assert work.fixed + work.experts + work.calls == done.timeline.spent[DECODE, :STALLS].sum()
