"""The CPU lane: same output, same decisions, the simulator's choice, and no hang when it fails."""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hardware import Cpu, Device, EngineProfile, HardwareProfile, Link, Overhead, load_hardware
from engine.plan.plan import plan_from_dict
from engine.simulator.log import CPU_EXPERT, KEY, WHAT
from policies.events import BYPASS, EVICT, HIT, LOAD
from tests.engine.runtime.models import FAMILIES, MakeModel, Reference, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tests.engine.runtime.test_loader import KeyStore
from tests.helpers.timelines import Script
from tracekit.errors import ModelError, PlanError

torch = pytest.importorskip("torch")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.cpu_lane import CpuLane, Missing  # noqa: E402


def machine(copy_ns: int, cpu_ns: int, expert_ns: int = 0) -> HardwareProfile:
    """A machine that needs so long for a copy, and for one expert on the CPU and on the device, whatever its size."""
    return HardwareProfile(
        name="test",
        description="",
        calibrated=False,
        source=[],
        device=Device(memory_bytes=1 << 30, memory_bandwidth_bytes_per_s=10**15, compute_flops_per_s=10**18),
        link=Link(host_to_device_bytes_per_s=10**15, latency_ns=copy_ns, copy_engines=1),
        engine=EngineProfile(
            name="test", overhead=Overhead(per_layer_ns=0, per_step_ns=0, gate_readback_ns=0, per_expert_ns=expert_ns)
        ),
        cpu=Cpu(memory_bandwidth_bytes_per_s=10**15, compute_flops_per_s=10**18, per_expert_ns=cpu_ns, transfer_ns=0),
    )


LANE_WINS = machine(copy_ns=10**9, cpu_ns=1_000)
COPY_WINS = machine(copy_ns=0, cpu_ns=10**9)


def plan_of(capacity: str = "2/layer", **tables: Any) -> Any:
    return plan_from_dict({"cache": {"capacity": capacity}, "compute": {"cpu_experts": "auto"}, **tables})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("capacity", ["0", "2/layer"])
def test_output_and_decisions_are_those_without_it(
    family: str, capacity: str, make_model: MakeModel, reference: Reference, tmp_path: Path
) -> None:
    plan = plan_of(capacity, prefetch={"predictor": "gate", "staging": 6})
    trace = record(plain := make_model(family), tmp_path / "t.trace", lambda: answer(plain))
    model = offload(make_model(family), plan, hardware=LANE_WINS)
    with offloaded(model) as state:
        assert same(answer(model), reference(family))
        assert_decided_alike(state.log, trace, state.spec)
        missing = np.isin(state.log.kind, (LOAD, BYPASS)).sum()
        assert state.lane is not None
        assert state.lane.computed == missing > 0
        assert state.bytes_loaded["bypass"] == 0, "what is computed on the host and not kept is not copied"
        loads, evicted = ((state.log.kind == kind).sum() for kind in (LOAD, EVICT))
        copied, rest = divmod(state.bytes_loaded["load"], state.store.slab_bytes)
        # Nobody waits for these copies: what is evicted before its copy has begun is not copied.
        assert rest == 0 and loads - evicted <= copied <= loads
        state.reset()
        assert state.lane.computed == 0
        assert same(answer(model), reference(family))


def test_where_copies_are_quicker_it_has_nothing_to_do(make_model: MakeModel, reference: Reference) -> None:
    model = offload(make_model(), plan_of(), hardware=COPY_WINS)
    with offloaded(model) as state:
        assert same(answer(model), reference())
        assert state.lane is not None
        assert state.lane.computed == 0


def test_many_tokens_and_experts_on_disk_in_four_bits(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    tables = {"weights": {"experts": "hqq-4bit-g16"}}
    never = plan_from_dict({"cache": {"capacity": "2/layer"}, **tables})
    with offloaded(offload(plain := make_model(), never)):
        expected = answer(plain)
    where = {"host": "disk", "slabs": tmp_path / "slabs"}
    with offloaded(offload(model := make_model(), plan_of(**tables), hardware=LANE_WINS, **where)) as state:
        assert same(answer(model), expected)
        assert state.lane is not None and state.lane.computed > 0


events = st.permutations([0, 1, 2]).flatmap(
    lambda order: st.lists(st.sampled_from([HIT, LOAD, BYPASS]), min_size=3, max_size=3).map(
        lambda kinds: sorted((kind, expert) for kind, expert in zip(kinds, order, strict=True))
    )
)


@settings(deadline=None)  # the first example compiles
@given(visit=events, copy=st.integers(1, 30), cpu=st.integers(1, 40), expert=st.integers(0, 10))
def test_it_takes_what_the_simulators_lane_would(
    visit: list[tuple[int, int]], copy: int, cpu: int, expert: int
) -> None:
    """One visit of one token with a free link: hits first, then what is missing, in the simulator's order."""
    first = [(LOAD, expert_id, expert_id) for _, expert_id in visit]  # an earlier step brings all three
    second = [(EVICT, e, e) for kind, e in visit if kind != HIT]
    second = [(HIT, e, e) for kind, e in visit if kind == HIT] + second
    second += [(kind, e, e) for kind, e in visit if kind != HIT]
    costs = {"copy": copy, "expert": expert, "cpu": 1, "cpu_expert_ns": np.full(2, cpu, np.int64)}
    script = Script([first, [], second, []], dense_ns=np.full(2, 1000, np.int64), **costs)
    rows = script.timeline.log.tolist()
    # The first step's, where everything is missing, and the second's.
    begins = 2000 + 1000
    simulated = [[r[KEY] for r in rows if r[WHAT] == CPU_EXPERT and (r[1] >= begins) == later] for later in (0, 1)]
    for events, chosen in zip((first, second), simulated, strict=True):
        lane = CpuLane.__new__(CpuLane)
        lane.hardware, lane.store, lane._params = machine(copy, cpu, expert), KeyStore(0, experts=3), [0]
        lane.cpu, lane._free_at = lane.hardware.cpu, 0  # type: ignore[assignment]
        resident = [1 for kind, *_ in events if kind == HIT]
        missing = [Missing(e, kind, 1) for kind, e, _ in events if kind in (LOAD, BYPASS)]
        assert lane.choose(0, resident, 0, missing) == chosen


def test_a_failure_on_the_lane_is_the_callers_and_reset_mends(
    make_model: MakeModel, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offload(make_model(), plan_of(), hardware=LANE_WINS)
    with offloaded(model) as state:
        lane: Any = state.lane
        forward = lane._forward[1]

        def fail(weights: object, rows: object) -> None:
            raise MemoryError("no room")

        lane._forward[1] = fail
        start = time.monotonic()
        with pytest.raises(MemoryError, match="no room"):
            answer(model)
        assert time.monotonic() - start < 5
        lane._forward[1] = forward
        state.reset()
        assert same(answer(model), reference())


@pytest.mark.parametrize("lacking", [None, "t4"])
def test_without_a_measured_cpu_it_is_refused(lacking: str | None, make_model: MakeModel) -> None:
    profile = None if lacking is None else msgspec.structs.replace(load_hardware(lacking), cpu=None)
    with pytest.raises(PlanError, match=r"cpu_experts = \"auto\" weighs .*give --hardware"):
        offload(make_model(), plan_of(), hardware=profile)


def test_what_the_lane_cannot_read_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    where = {"host": "disk", "slabs": tmp_path / "slabs"}
    with offloaded(offload(make_model(), plan_of(), hardware=COPY_WINS, **where)) as state:
        file = Path(state.store.path) / state.store.index.layers[0].file  # type: ignore[union-attr]
    with file.open("r+b") as opened:
        opened.write(b"\xff" * 64)
    model = offload(make_model(), plan_of(), hardware=LANE_WINS, **where)
    with offloaded(model), pytest.raises(ModelError, match=r"the CPU lane cannot read an expert: .* is damaged at exp"):
        answer(model)


def test_a_lane_that_hangs_holds_nobody(make_model: MakeModel) -> None:
    model = offload(make_model(), plan_of(), hardware=LANE_WINS)
    state = offloaded(model)
    lane: Any = state.lane
    lane.timeout_s, stuck = 0.2, threading.Event()
    lane._forward[0] = lambda weights, rows: stuck.wait(30)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"the CPU lane hangs: an expert has not been computed for 0\.2 s"):
        answer(model)
    state.close()
    assert time.monotonic() - start < 5
    stuck.set()
