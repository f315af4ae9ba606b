"""Curves: every point is what `replay` says of that plan, found in one pass or by replaying."""

from pathlib import Path

import numpy as np
import pytest

from engine.curves.curve import curve, sizes
from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import CapacityError, PolicyError, TraceError
from tracekit.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """40 tokens, of which the first 10 are one prefill step; two layers, top-2 of 6 and of 4 experts."""
    experts = random_experts(np.random.default_rng(1), tokens=40, layers=2, experts=4, top_k=2)
    experts[::3, 0] += 2
    step = np.maximum(np.arange(40) - 9, 0)
    return make_trace(tmp_path / "t.trace", experts, num_experts=[6, 4], step=step, phase=(step > 0).astype(np.uint8))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_point_is_what_replay_says(trace: Trace, scope: str) -> None:
    points = curve(trace, ["lru", "lfu", "belady"], scope="layer" if scope == "layer" else "global")
    assert len(points) == 3 * (6 if scope == "layer" else 10)
    for point in points:
        plan = plan_from_dict({"cache": {"capacity": point.capacity}, "eviction": {"policy": point.policy}})
        result = replay(trace, plan, bounds=False)
        assert (point.hit_ratio, point.decode_hit_ratio) == (result.hit_ratio, result.phases.decode.hit_ratio), point


def test_more_points_than_sizes_are_every_size(trace: Trace) -> None:
    assert sizes(trace, "global", 10**9) == list(range(1, 11))
    assert sizes(trace, "layer", 2) == [1, 6]


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_bad_input(trace: Trace, policy: str, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="a layer has only 6 experts"):
        curve(trace, [policy], slots=[7])
    with pytest.raises(PolicyError, match="did you mean"):
        curve(trace, [policy + "x"])
    empty = make_trace(tmp_path / "empty.trace", np.zeros((0, 2, 1), np.uint16), num_experts=4)
    with pytest.raises(TraceError, match="holds no tokens"):
        curve(empty, [policy])
