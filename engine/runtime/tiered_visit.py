"""Deciding a visit of experts in two formats, from what has been read back of its gate."""

from collections.abc import Sequence

import numpy as np

from engine.decisions.importance import importance_of
from engine.runtime.visit_routing import Routing, TokenRouting
from policies.events import Events
from policies.tiered_cache import TieredCache


def decide_tiered(
    cache: TieredCache,
    layer: int,
    ids: np.ndarray,
    weights: np.ndarray | None,
    routing: Routing | TokenRouting,
    hint: list[int],
    signal: Sequence[float],
) -> tuple[Events, set[int]]:
    """The decisions, and which demanded experts their low copies serve; ids u16 and weights f16 [tokens, k]."""
    demand, told = routing.demand, None
    if weighs(cache):
        assert weights is not None
        told = importance_of(ids, weights, demand, cache.spec.experts)
    events, lows = cache.visit(layer, demand, routing.recency, hint, signal, told)
    return events, {expert for expert, low in zip(demand, lows, strict=True) if low}


def weighs(cache: object) -> bool:
    """Whether the rule of a cache's tiers, if it has tiers, reads gate weights."""
    return isinstance(cache, TieredCache) and cache.rule_class.reads == "gate-weight"
