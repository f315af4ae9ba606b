"""Device memory of a plan by part, worked out by hand for Mixtral-8x7B, and the capacity that fills a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import Plan
from engine.replay.memory import DeviceMemory
from engine.replay.replay import replay
from engine.replay.result import Result
from tests.helpers.traces import make_trace
from tracekit.errors import CapacityError, PlanError
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

EXPERT = 3 * 4096 * 14336  # parameters
DENSE = 46_702_792_704 - 32 * 8 * EXPERT


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """One request: a prompt of five tokens, seven more; 32 layers of which each token uses the same two experts."""
    experts = np.tile(np.array([0, 1]), (12, 32, 1))
    step = np.maximum(np.arange(12) - 4, 0)
    phase = np.where(step == 0, PREFILL, DECODE)
    return make_trace(tmp_path / "t.trace", experts, num_experts=8, step=step, phase=phase)


def memory(trace: Trace, plan: Plan, hardware: str = "h100") -> tuple[Result, DeviceMemory]:
    result = replay(trace, plan, hardware, model_shape="mixtral-8x7b")
    assert result.estimates is not None
    found = DeviceMemory(**result.estimates.device_parts)
    assert found.total == result.estimates.device_bytes
    return result, found


def test_parts_by_hand(trace: Trace) -> None:
    _, found = memory(trace, Plan("4/layer", serve={"context": 8192, "batch": 3}))
    assert found.dense == 2 * DENSE
    assert found.kv_cache == 3 * 8192 * 2 * 8 * 128 * 2 * 32
    assert found.slots == 4 * 32 * 2 * EXPERT and found.staging == 4 * 2 * EXPERT
    assert found.expansion == 0 and found.activations > 0


def test_formats_of_experts_and_cache(trace: Trace) -> None:
    _, found = memory(trace, Plan("4/layer", weights="hqq-4bit", serve={"context": 8192, "kv_cache": "q8_0"}))
    assert found.expansion == 2 * EXPERT and found.slots == 4 * 32 * EXPERT * 9 // 16
    assert found.kv_cache == 8192 * 2 * 8 * 128 * 34 // 32 * 32
    _, found = memory(trace, Plan("4/layer", weights="q4_k"))
    assert found.expansion == 0 and found.slots == 4 * 32 * EXPERT * 9 // 16


def test_without_a_word_it_is_the_traces_requests(trace: Trace) -> None:
    _, found = memory(trace, Plan("4/layer"))
    assert found.kv_cache == 12 * 2 * 8 * 128 * 2 * 32


def test_host_memory_is_that_of_the_shape(trace: Trace, tmp_path: Path) -> None:
    """A trace of 32 experts says nothing of the size of a model with 8."""
    result, _ = memory(trace, Plan("4/layer"))
    assert result.estimates is not None and result.estimates.host_bytes == 32 * 8 * 2 * EXPERT


def test_auto_fills_the_device_and_not_more(trace: Trace) -> None:
    plan = Plan("auto", weights="hqq-4bit", serve={"context": 4096})
    result, found = memory(trace, plan, "rtx3060")
    slots = int(result.provenance["plan"]["cache"]["capacity"].removesuffix("/layer"))
    room = 12 * 2**30 * 19 // 20
    assert found.total <= room < found.total + found.slots // slots
    longer, _ = memory(trace, Plan("auto", weights="hqq-4bit", serve={"context": 32768}), "rtx3060")
    assert int(longer.provenance["plan"]["cache"]["capacity"].removesuffix("/layer")) < slots
    with pytest.raises(CapacityError, match="one slot per layer and all else take"):
        memory(trace, Plan("auto", serve={"context": 32768}), "rtx3060")
    with pytest.raises(CapacityError, match="needs the sizes of experts"):
        replay(trace, Plan("auto"), "rtx3060")


def test_auto_beside_a_placement_and_a_split_is_as_much(trace: Trace, tmp_path: Path) -> None:
    profile = make_trace(tmp_path / "p.trace", np.tile(np.array([0, 3]), (9, 32, 1)), num_experts=8)
    options: dict[str, Any] = {"weights": "hqq-4bit", "serve": {"context": 4096}}
    _, found = memory(trace, Plan("auto", **options), "rtx3060")
    pinned = {"pinned": "popular:1/layer", "profile": str(profile.path)}
    result, same = memory(trace, Plan("auto", split="even", placement=pinned, **options), "rtx3060")
    assert same == found
    assert result.provenance["plan"]["cache"]["split"] == "even"
    assert result.hits_by.pinned == 32 * 8  # expert 0 at every step


def test_what_does_not_fit_is_said_by_part(trace: Trace) -> None:
    result, _ = memory(trace, Plan("8/layer"), "rtx3060")
    (said,) = [text for text in result.warnings if "does not fit" in text]
    assert "dense 3.0" in said and "slots 84.0" in said and "12.0 GiB" in said


@pytest.mark.parametrize(
    "serve", [{"context": 0}, {"batch": 0}, {"kv_cache": "hqq-4bit"}, {"kv_cache": "iq1_s"}, {"contxt": 4}]
)
def test_a_load_that_makes_no_sense_is_refused(serve: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Plan("4/layer", serve=serve)
