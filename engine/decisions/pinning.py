"""What a plan pins: the experts that are on the device from the start, for ever. `static` fills the cache with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plan.layers import check_layers
from engine.plan.placement import load_placement, parse_pinned
from engine.plan.tables import EvictionPlan, PlacementPlan
from policies.registry import eviction_policy
from tracekit.errors import PlanError
from tracekit.popularity import popularity


def placed(placement: PlacementPlan, experts_per_layer: Sequence[int]) -> tuple[int, ...]:
    """The keys that a plan's `placement` pins, ascending. Raises PlanError."""
    pinned = placement.pinned
    if pinned is None:
        return ()
    parsed, experts = parse_pinned(pinned), max(experts_per_layer)
    if parsed.layers is not None:
        check_layers(parsed.layers, len(experts_per_layer), f"placement.pinned = {pinned!r}")
        return tuple(layer * experts + expert for layer in parsed.layers for expert in range(experts_per_layer[layer]))
    if parsed.popular is not None:
        capacity, size = parsed.popular.groups(experts_per_layer, experts, [])
        counts = popularity(Path(placement.profile or ""), list(experts_per_layer))
        return tuple(sorted(most_popular(counts, experts_per_layer, capacity, size)))
    return load_placement(pinned).keys(experts_per_layer, f"placement {pinned}")


def begins_with(file: str | None, experts_per_layer: Sequence[int]) -> tuple[int, ...]:
    """The keys that are in the cache before the first request, the most recent last. Raises PlanError."""
    return () if file is None else load_placement(file).in_order(experts_per_layer, f"cache.warm: {file}")


def filled(
    eviction: EvictionPlan,
    pinned: tuple[int, ...],
    experts_per_layer: Sequence[int],
    capacity: Sequence[int],
    size: np.ndarray,
) -> tuple[int, ...]:
    """The keys that are pinned in all: of a policy that fills its cache from a profile those, else what is `pinned`."""
    policy, profile = eviction.policy, eviction.profile
    if not eviction_policy(policy).needs_profile:
        if profile is not None:
            raise PlanError(f"eviction policy {policy!r} reads no profile: remove eviction.profile")
        return pinned
    if profile is None:
        raise PlanError(f"eviction policy {policy!r} needs eviction.profile = a trace (--profile)")
    if pinned:
        raise PlanError(
            f"eviction policy {policy!r} pins all that the cache holds: leave out placement, or take another policy "
            "for the rest"
        )
    return most_popular(popularity(Path(profile), list(experts_per_layer)), experts_per_layer, capacity, size)


def most_popular(
    counts: np.ndarray, experts_per_layer: Sequence[int], capacity: Sequence[int], size: np.ndarray
) -> tuple[int, ...]:
    """Keys of the experts of the most `counts` [layers, experts], as many as fit into each group; ties by key."""
    experts = max(experts_per_layer)
    order = np.argsort(-counts.ravel(), kind="stable")
    left = list(capacity)
    pinned = []
    for key in order.tolist():
        group = key // experts if len(left) > 1 else 0
        if key % experts < experts_per_layer[key // experts] and size[key] <= left[group]:
            left[group] -= int(size[key])
            pinned.append(key)
    return tuple(pinned)
