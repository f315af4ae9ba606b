"""Advice that is right: held against the same plan without prefetching, and said of what is assumed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.hardware import Link, load_hardware
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.replay.setting import Setting
from engine.shapes import load_shape
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import PlanError
from tracekit.trace import Trace

BYTES = 1 << 20


def routed(path: Path, right: bool) -> Trace:
    """Two layers, one token a step; the gate's look ahead says what the second layer chooses, or what it does not."""
    experts = random_experts(np.random.default_rng(3), 40, layers=2)
    ahead = np.zeros((40, 1, 8), np.float16)
    np.put_along_axis(ahead[:, 0], experts[:, 1].astype(np.int64), 1 if right else -1, axis=1)
    return make_trace(
        path,
        experts,
        num_experts=8,
        lookahead={1: ahead},
        expert_bytes=[BYTES] * 2,
        expert_params=[BYTES // 2] * 2,
    )


@pytest.mark.parametrize("right", [True, False])
def test_prefetching_is_advised_against_only_where_it_makes_the_plan_slower(tmp_path: Path, right: bool) -> None:
    """The link is busy all the time in both."""
    trace, machine = routed(tmp_path / "t.trace", right), load_hardware("t4", "graph-fused")
    link = Link(host_to_device_bytes_per_s=10**8, latency_ns=0, copy_engines=1)
    machine = msgspec.structs.replace(machine, link=link)
    with_it, without = (replay(trace, Plan("0/layer", prefetch=name), machine) for name in ("gate", "none"))
    assert with_it.time is not None and without.time is not None
    assert with_it.time.tokens_per_second is not None and without.time.tokens_per_second is not None
    assert with_it.time.link_utilisation > 0.95
    faster = with_it.time.tokens_per_second >= without.time.tokens_per_second
    assert faster == right
    told = [text for text in with_it.warnings if text.startswith("prefetching makes this plan slower")]
    assert bool(told) == (not right)
    if told:
        by = 100 * (without.time.tokens_per_second / with_it.time.tokens_per_second - 1)
        assert f"by {by:.1f} %" in told[0]


def test_what_is_mostly_assumed_of_software_is_said(tmp_path: Path) -> None:
    trace = routed(tmp_path / "t.trace", right=True)
    for engine, told in (("transformers-eager", True), ("graph-fused", False)):
        result = replay(trace, Plan("2/layer"), "rtx3060", engine=engine)
        assert result.time is not None
        assert (result.time.largest_part == "overhead") == told
        assert any("transformers-eager is assumed to take" in text for text in result.warnings) == told
    own = msgspec.structs.replace(load_hardware("rtx3060").engine, name="calibrated")
    measured = replay(trace, Plan("2/layer"), load_hardware("rtx3060").with_engine(own))
    assert not any("assumed" in text for text in measured.warnings), "what was measured is no assumption"


def test_another_routing_at_a_shape_is_refused_unless_said_how(tmp_path: Path) -> None:
    trace, shape = routed(tmp_path / "t.trace", right=True), load_shape("qwen3-30b-a3b")
    with pytest.raises(PlanError, match=r"top-2 of 8 experts, qwen3-30b-a3b top-8 of 128: .*--reshape"):
        Setting.of(trace.manifest, Plan("2/layer"), None, shape)
    with pytest.raises(PlanError, match=r"reshape 'size'; did you mean 'sizes'"):
        Setting.of(trace.manifest, Plan("2/layer"), None, shape, reshape="size")
    assert Setting.of(trace.manifest, Plan("2/layer"), None, shape, reshape="sizes").sizes[0] > 0
    assert replay(trace, Plan("2/layer"), None, model_shape=shape, reshape="sizes").provenance["reshape"] == "sizes"
