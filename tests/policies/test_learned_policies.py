"""Adaptive depth and learned eviction: small routings whose right answers can be told by hand."""

import numpy as np

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.events import BYPASS, LOAD
from policies.fields import Layout
from policies.prefetch.adaptive import AdaptiveGate, AdaptiveLearned


def visits(worth: float, seconds: list[bool]) -> list[int]:
    """How many experts are suggested at each step: the hint's first rank is always right, its second as told."""
    layout = Layout(2, 4, 1, 1, np.ones(8, np.int64), np.zeros(8, np.int64))
    subject = AdaptiveGate.interpreted(AdaptiveGate.allocate(layout, {"worth": worth}))
    out, found = np.full(2, -1, np.int32), []
    for right in seconds:
        subject.observe(0, np.array([0], np.uint32))  # type: ignore[attr-defined]
        found.append(subject.suggest(1, np.array([4, 5, -1], np.int32), out))  # type: ignore[attr-defined]
        subject.observe(1, np.array([4, 5 if right else 6], np.uint32))  # type: ignore[attr-defined]
    return found


def test_a_rank_that_is_wrong_too_often_is_dropped_and_comes_back() -> None:
    found = visits(0.5, [False] * 40 + [True] * 60)
    assert found[0] == 2  # trusted until it has failed
    # (31 / 32)^n falls below one half after 22 visits; 1 - (1 - r)(31 / 32)^n is above it again soon after.
    assert found[20] == 2 and found[24] == 1 and found[40] == 1
    assert found[-1] == 2


def test_a_rank_that_is_always_right_is_kept_and_worth_0_keeps_all() -> None:
    assert set(visits(1.0, [True] * 50)) == {2}
    assert set(visits(0.0, [False] * 200)) == {2}
    assert AdaptiveLearned.reads == "predicted" and AdaptiveLearned.suggest is AdaptiveGate.suggest


def evicting(bypass: bool, aging: float = 1.0, layers: int = 1) -> ExpertCache:
    parameters = {"bypass": bypass, "aging": aging}
    size = np.ones(layers * 4, np.int64)
    return ExpertCache(CacheSpec(layers, 4, (2,), size, "learned", parameters), compiled=False)


def resident(cache: ExpertCache) -> set[int]:
    return set(np.flatnonzero(cache.state.place).tolist())


def test_the_expert_expected_last_goes() -> None:
    cache = evicting(bypass=False)
    cache.visit(0, [0, 1], signal=[9.0, 2.0])
    cache.visit(0, [2], signal=[20.0])
    assert resident(cache) == {1, 2}


def test_with_bypass_what_is_expected_later_than_all_is_streamed() -> None:
    cache = evicting(bypass=True)
    cache.visit(0, [0, 1], signal=[9.0, 2.0])
    assert [int(kind) for kind in cache.visit(0, [2], signal=[20.0]).kind] == [BYPASS]
    assert resident(cache) == {0, 1}
    assert LOAD in cache.visit(0, [2], signal=[3.0]).kind and resident(cache) == {1, 2}


def test_what_waits_longer_is_expected_later() -> None:
    """Expert 0 was expected after 2 steps and has not come for 9; expert 1, expected after 8, has just been used."""
    for aging, kept in ((1.0, {1, 3}), (0.0, {0, 3})):
        cache = evicting(bypass=False, aging=aging)
        cache.visit(0, [0], signal=[2.0])
        for _ in range(9):
            cache.visit(0, [1], signal=[8.0])
        cache.visit(0, [3], signal=[1.0])
        assert resident(cache) == kept, aging


def test_the_layer_that_comes_first_keeps_its_expert() -> None:
    """One cache for two layers: both experts are expected at the next step, but layer 1 comes before layer 0 again."""
    cache = evicting(bypass=False, layers=2)
    cache.visit(0, [0], signal=[1.0])
    cache.visit(1, [0], signal=[1.0])
    cache.visit(0, [1], signal=[1.0])  # evicts 0 of layer 0, which is two visits away; key 4 is one away
    assert resident(cache) == {1, 4}
