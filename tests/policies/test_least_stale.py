"""Least-Stale on a routing small enough to follow by hand."""

import numpy as np

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.events import EVICT


def evicted(cache: ExpertCache, layer: int, expert: int) -> list[tuple[int, int]]:
    """Visit `layer`; the (layer, expert) that had to go."""
    return [divmod(key, 4) for _, kind, key, _ in cache.visit(layer, [expert]).rows() if kind == EVICT]


def test_passed_layers_go_first_then_those_farthest_ahead_then_this_pass() -> None:
    """Four layers of four experts, four slots for all. Every visit asks for an expert that is not there."""
    cache = ExpertCache(CacheSpec(4, 4, (4,), np.ones(16, np.int64), "least-stale"), compiled=False)
    assert [evicted(cache, layer, 0) for layer in range(4)] == [[]] * 4
    # Second pass: of the first pass's experts, that of the layer just reached is the one no longer to come.
    assert evicted(cache, 0, 1) == [(0, 0)]
    assert evicted(cache, 1, 1) == [(1, 0)]
    assert evicted(cache, 2, 1) == [(2, 0)]
    assert evicted(cache, 3, 1) == [(3, 0)]
    # Third pass, three experts of layer 0 at once: one is passed, the others are taken from the farthest ahead.
    assert [divmod(key, 4) for _, kind, key, _ in cache.visit(0, [2, 3, 0]).rows() if kind == EVICT] == [
        (0, 1),
        (3, 1),
        (2, 1),
    ]
    # The stale one of layer 1 goes as its layer comes; after it only this pass's are left, lowest layer first.
    assert [divmod(key, 4) for _, kind, key, _ in cache.visit(1, [2, 3]).rows() if kind == EVICT] == [(1, 1), (0, 2)]
