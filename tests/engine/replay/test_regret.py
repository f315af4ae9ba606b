"""Regret: parts that add up to the nanosecond, and that are what small cases say by hand."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.hardware import ExpertKernel, load_hardware
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.regret import without_prefetches
from engine.replay.replay import replay
from engine.replay.result import Regret
from policies.events import HIT, HIT_PREFETCHED, PREFETCH, Events
from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace

BYTES = 1_000_000
MACHINE = load_hardware("rtx3060")
COPY = MACHINE.copy_ns(BYTES)
PARTS = ("overhead", "compulsory", "capacity", "policy", "prefetch", "pollution", "late_prefetch")
PARTS += ("prefetch_copies", "lane")


def regret(trace: Trace, **tables: Any) -> Regret:
    found = replay(trace, plan_from_dict(tables), MACHINE).regret
    assert found is not None
    return found


def parts(found: Regret) -> dict[str, int]:
    return {name: getattr(found, f"{name}_ns") for name in PARTS}


def small(path: Path, experts: list[list[int]], lookahead: np.ndarray | None = None, num_experts: int = 3) -> Trace:
    """Decode steps of one token, top-1: `experts` [steps, layers]."""
    return make_trace(
        path,
        np.array(experts)[:, :, None],
        num_experts=num_experts,
        lookahead=None if lookahead is None else {1: lookahead},
        expert_bytes=[BYTES] * len(experts[0]),
        expert_params=[BYTES // 2] * len(experts[0]),
    )


def test_two_experts_take_turns_in_one_slot(tmp_path: Path) -> None:
    """A B A B A: LRU copies five times; clairvoyant, A is kept and B bypasses twice; two must be copied in any case."""
    found = regret(small(tmp_path / "t.trace", [[0], [1], [0], [1], [0]]), cache={"capacity": "1/layer"})
    overhead = MACHINE.overhead
    fixed = overhead.per_layer_ns + overhead.gate_readback_ns + overhead.per_step_ns + overhead.per_expert_ns
    assert parts(found) == dict.fromkeys(PARTS, 0) | {
        "overhead": 5 * fixed,
        "compulsory": 2 * COPY,
        "capacity": 1 * COPY,
        "policy": 2 * COPY,
    }
    assert found.total_ns == 5 * fixed + 5 * COPY and found.steps == 5


def test_what_a_fused_call_takes_whatever_it_computes_is_overhead(tmp_path: Path) -> None:
    """A B A B A, one expert a step: each step is a call."""
    device = MACHINE.device
    kernel = ExpertKernel(
        memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s,
        compute_flops_per_s=device.compute_flops_per_s,
        per_call_ns=700,
        per_expert_ns=30,
    )
    trace = small(tmp_path / "t.trace", [[0], [1], [0], [1], [0]])
    machine = MACHINE.with_engine(msgspec.structs.replace(MACHINE.engine, fused=kernel))
    found = replay(trace, Plan("1/layer", compute_experts="fused"), machine).regret
    assert found is not None
    overhead = MACHINE.overhead
    fixed = overhead.per_layer_ns + overhead.gate_readback_ns + overhead.per_step_ns + 700 + 30
    assert parts(found)["overhead"] == 5 * fixed
    assert found.total_ns == sum(parts(found).values()) == 5 * fixed + 5 * COPY


def test_a_prefetch_that_displaces_what_is_needed_is_pollution(tmp_path: Path) -> None:
    """Layer 1 always demands its expert 0, and has one slot; the gate's look ahead always says expert 1."""
    wrong = np.zeros((6, 1, 3), np.float16)
    wrong[:, 0, 1] = 1
    trace = small(tmp_path / "t.trace", [[0, 0]] * 6, wrong)
    prefetch = {"predictor": "gate", "count": 1, "target": "cache", "staging": 1}
    found = regret(trace, cache={"capacity": "1/layer"}, prefetch=prefetch)
    assert found.pollution_ns == 5 * COPY, "the first load is compulsory, five more are not"
    assert found.prefetch_ns == 0 and found.policy_ns == 0
    # The wrong copies themselves are over long before the next visit: a layer's overhead takes many times as long.
    assert found.late_prefetch_ns == 0 and found.prefetch_copies_ns == 0


def test_a_prefetch_that_is_right_wins_what_policy_lost(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.trace", [[0, i % 3] for i in range(12)])
    found = regret(trace, cache={"capacity": "1/layer"}, prefetch={"predictor": "oracle", "count": 1})
    alone = regret(trace, cache={"capacity": "1/layer"})
    assert found.prefetch_ns == -12 * COPY, "every copy of layer 1 is asked for a layer ahead"
    assert parts(found)["capacity"] == parts(alone)["capacity"] and found.total_ns < alone.total_ns
    assert found.pollution_ns == 0


@pytest.mark.parametrize("target", ["staging", "cache"])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_parts_add_up_exactly(policy: str, seed: int, target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    trace = make_trace(
        tmp_path / "t.trace",
        random_experts(rng, 40, layers=3),
        num_experts=8,
        phase=(np.arange(40) >= 5).astype(np.uint8),
        lookahead={1: rng.normal(size=(40, 2, 8)).astype(np.float16)},
        expert_bytes=[BYTES] * 3,
        expert_params=[BYTES // 2] * 3,
    )
    plan = plan_from_dict(
        {
            "cache": {"capacity": f"{rng.integers(0, 7)}/layer"},
            "eviction": {"policy": policy},
            "prefetch": {"predictor": str(rng.choice(["none", "gate", "oracle"])), "target": target},
        }
    )
    own = msgspec.structs.replace(MACHINE.overhead, per_layer_ns=int(rng.choice([0, 10**6])), per_copy_ns=777)
    machine = MACHINE.with_engine(msgspec.structs.replace(MACHINE.engine, overhead=own))
    machine = msgspec.structs.replace(machine, device=msgspec.structs.replace(machine.device, memory_bytes=1 << 40))
    shape = str(rng.choice(["mixtral-8x7b", "olmoe-1b-7b"])) if seed % 2 else None
    result = replay(trace, plan, machine, model_shape=shape, reshape="sizes")
    found = result.regret
    assert found is not None and result.time is not None and result.time.tokens_per_second is not None
    assert sum(parts(found).values()) == found.total_ns
    assert found.total_ns <= found.steps / result.time.tokens_per_second * 1e9 * 1.000001
    for name in ("overhead", "compulsory", "pollution", "late_prefetch"):
        assert getattr(found, f"{name}_ns") >= 0, name
    if plan.prefetch.predictor == "none":
        assert [parts(found)[name] for name in PARTS[4:]] == [0] * 5


@pytest.mark.parametrize("seed", range(8))
def test_what_misses_served_otherwise_win_is_a_part_of_its_own(seed: int, tmp_path: Path) -> None:
    """All other parts are those of the plan that copies every miss: a capacity costs no less than nothing."""
    rng = np.random.default_rng(seed)
    experts = random_experts(rng, 40, layers=3)
    sizes = {"expert_bytes": [BYTES] * 3, "expert_params": [BYTES // 2] * 3}
    trace = make_trace(
        tmp_path / "t.trace", experts, num_experts=8, phase=(np.arange(40) >= 5).astype(np.uint8), **sizes
    )
    capacity = f"{seed % 7}/layer"
    machine = load_hardware("rtx3060", "graph-fused")
    where = ("auto", "host", "copy")[seed % 3]
    other = Plan(capacity, miss=where, admission="always" if seed % 2 and where != "copy" else "second-miss")
    found, bare = (replay(trace, plan, machine).regret for plan in (other, Plan(capacity)))
    assert found is not None and bare is not None
    assert sum(parts(found).values()) == found.total_ns
    assert bare.lane_ns == 0 and bare.capacity_ns >= 0
    assert parts(found) == parts(bare) | {"lane": found.lane_ns}


def test_without_prefetches_only_their_copies_are_gone() -> None:
    rows = [(0, HIT, 1, 0), (0, PREFETCH, 5, 2), (1, HIT_PREFETCHED, 5, 2), (1, PREFETCH, 0, 3), (3, HIT, 1, 0)]
    events = Events.of(rows, 4)
    assert without_prefetches(events).rows() == [row for row in rows if row[1] != PREFETCH]


def test_no_hardware_no_regret(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.trace", [[0], [1]])
    assert replay(trace, plan_from_dict({"cache": {"capacity": "1"}})).regret is None
    assert replay(trace, plan_from_dict({"cache": {"capacity": "1"}}), MACHINE, bounds=False).regret is None
