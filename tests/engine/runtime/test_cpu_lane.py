"""Misses on the host: same output, the simulator's decisions, and no hang when the lane fails."""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.hardware import load_hardware
from engine.plan.plan import plan_from_dict
from engine.replay.setting import Setting
from policies.events import ADMIT, BYPASS, EVICT, HOST
from tests.engine.runtime.models import FAMILIES, MakeModel, Reference, answer, same
from tests.engine.runtime.test_decisions import assert_decided_alike, record
from tracekit.errors import ModelError, PlanError
from tracekit.manifest import Manifest
from tracekit.trace import Trace

torch = pytest.importorskip("torch")
from engine.runtime import offload, offloaded  # noqa: E402  # needs torch
from engine.runtime.offload_state import OffloadState  # noqa: E402

SHIPPED = load_hardware("rtx3060")
assert SHIPPED.cpu is not None
PROFILE = msgspec.structs.replace(
    SHIPPED, cpu=msgspec.structs.replace(SHIPPED.cpu, per_expert_ns=2_000, transfer_ns=1_000, slowdown_percent=30)
)
MODES: dict[str, dict[str, Any]] = {
    "host": {"miss": {"where": "host"}},
    "host, a few kept": {"miss": {"where": "host"}, "admission": {"per_step": 2}},
    "host, second miss": {"miss": {"where": "host"}, "admission": {"policy": "second-miss"}},
    "split": {"miss": {"where": "split", "share": 0.5}},
    "split by the profile": {"miss": {"where": "split"}},
    "auto": {"miss": {"where": "auto"}},
    "auto, by score": {"miss": {"where": "auto"}, "admission": {"policy": "score", "threshold": 0.4}},
    "copied, by score": {"admission": {"policy": "score", "threshold": 0.4}},
    "copied, by layer": {"admission": {"per_step": 3, "per_layer": "even"}},
}


def plan_of(capacity: str = "2/layer", **tables: Any) -> Any:
    return plan_from_dict({"cache": {"capacity": capacity}, "miss": {"where": "host"}, **tables})


@pytest.mark.parametrize("mode", MODES)
def test_the_engine_decides_as_the_simulator(
    mode: str, make_model: MakeModel, reference: Reference, tmp_path: Path
) -> None:
    """A prompt of several tokens, then one at a time; beside prefetching; and the output is what it always is."""
    plan = plan_from_dict(
        {"cache": {"capacity": "2/layer"}, "prefetch": {"predictor": "gate", "staging": 3}, **MODES[mode]}
    )
    trace = record(plain := make_model(), tmp_path / "t.trace", lambda: answer(plain))
    with offloaded(offload(model := make_model(), plan, hardware=PROFILE)) as state:
        assert same(answer(model), reference())
        setting = Setting.of(state_manifest(trace, state), plan, PROFILE)
        assert setting.spec.meaning == state.spec.meaning
        assert_decided_alike(state.log, trace, setting.spec)
        kinds = state.log.kind
        by_host = int(np.isin(kinds, (HOST, ADMIT)).sum())
        assert (0 if state.lane is None else state.lane.computed) == by_host
        assert (state.lane is None) == mode.startswith("copied") and (by_host > 0) == (state.lane is not None)
        if "admission" in MODES[mode]:
            assert np.isin(kinds, (HOST, BYPASS)).any()


def state_manifest(trace: Trace, state: OffloadState) -> Manifest:
    """The trace's, with the sizes of experts as the engine stores them, as `validate` has it."""
    params = [layer.expert_params for layer in state.layers]
    return msgspec.structs.replace(trace.manifest, expert_bytes=state.expert_bytes, expert_params=params)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("capacity", ["0", "2/layer"])
def test_an_expert_is_the_same_wherever_it_is_computed(
    family: str, capacity: str, make_model: MakeModel, reference: Reference
) -> None:
    with offloaded(offload(model := make_model(family), plan_of(capacity))) as state:
        assert same(answer(model), reference(family))
        assert state.lane is not None and state.lane.computed > 0
        assert state.bytes_loaded["load"] == state.bytes_loaded["bypass"] == 0
        admitted, evicted = (int((state.log.kind == kind).sum()) for kind in (ADMIT, EVICT))
        copied, rest = divmod(state.bytes_loaded["admit"], state.store.slab_bytes)
        # Nobody waits for these copies: what is evicted before its copy has begun is not copied.
        assert rest == 0 and admitted - evicted <= copied <= admitted
        state.reset()
        assert state.lane.computed == 0
        assert same(answer(model), reference(family))


def test_where_copies_are_quicker_the_host_has_nothing_to_do(make_model: MakeModel, reference: Reference) -> None:
    assert PROFILE.cpu is not None
    slow = msgspec.structs.replace(PROFILE, cpu=msgspec.structs.replace(PROFILE.cpu, per_expert_ns=10**9))
    model = offload(make_model(), plan_of(miss={"where": "auto"}), hardware=slow)
    with offloaded(model) as state:
        assert same(answer(model), reference())
        assert state.lane is not None and state.lane.computed == 0


def test_many_tokens_and_experts_on_disk_in_four_bits(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    tables = {"weights": {"experts": "hqq-4bit-g16"}}
    never = plan_from_dict({"cache": {"capacity": "2/layer"}, **tables})
    with offloaded(offload(plain := make_model(), never)):
        expected = answer(plain)
    where = {"host": "disk", "slabs": tmp_path / "slabs"}
    with offloaded(offload(model := make_model(), plan_of(**tables), **where)) as state:
        assert same(answer(model), expected)
        assert state.lane is not None and state.lane.computed > 0


def test_a_failure_on_the_lane_is_the_callers_and_reset_mends(
    make_model: MakeModel, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offload(make_model(), plan_of())
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
@pytest.mark.parametrize("where", ["auto", "split"])
def test_without_a_measured_cpu_it_is_refused(where: str, lacking: str | None, make_model: MakeModel) -> None:
    profile = None if lacking is None else msgspec.structs.replace(load_hardware(lacking), cpu=None)
    with pytest.raises(PlanError, match=rf"where = \"{where}\" needs to know how fast the host.*give --hardware"):
        offload(make_model(), plan_of(miss={"where": where}), hardware=profile)


def test_what_the_lane_cannot_read_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    where = {"host": "disk", "slabs": tmp_path / "slabs"}
    with offloaded(offload(make_model(), plan_from_dict({"cache": {"capacity": "2/layer"}}), **where)) as state:
        file = Path(state.store.path) / state.store.index.layers[0].file  # type: ignore[union-attr]
    with file.open("r+b") as opened:
        opened.write(b"\xff" * 64)
    model = offload(make_model(), plan_of(), **where)
    with offloaded(model), pytest.raises(ModelError, match=r"the CPU lane cannot read an expert: .* is damaged at exp"):
        answer(model)


def test_a_lane_that_hangs_holds_nobody(make_model: MakeModel) -> None:
    model = offload(make_model(), plan_of())
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
