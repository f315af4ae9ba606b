"""What a plan's `precision` means for a model: slots of both kinds, and what its rule reads of a profile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plan.capacity import Capacity
from engine.plan.tables import PrecisionPlan
from policies.cache_spec import LowCopies
from policies.registry import tier_rule
from tracekit.errors import PlanError
from tracekit.popularity import popularity


def low_copies(precision: PrecisionPlan, experts_per_layer: Sequence[int], expert_bytes: Sequence[int]) -> LowCopies:
    """The low copies of a plan; `expert_bytes` [layers] are theirs, empty where unknown. Raises what plans raise."""
    capacity = Capacity.parse(precision.capacity).groups(experts_per_layer, max(experts_per_layer), expert_bytes)
    rule = tier_rule(precision.rule)
    if rule.needs_profile and precision.profile is None:
        raise PlanError(f"precision.rule {precision.rule!r} needs precision.profile = a trace, or counts of one")
    if not rule.needs_profile and precision.profile is not None:
        raise PlanError(f"precision.rule {precision.rule!r} reads no profile: remove precision.profile")
    places = None
    if precision.profile is not None:
        places = popular_places(popularity(Path(precision.profile), list(experts_per_layer)))
    return LowCopies(in_slots(*capacity)[0], precision.rule, precision.parameters, places)


def in_slots(capacity: Sequence[int], size: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """A capacity in whole slots, each for the largest expert of its group, and the size of each expert in them: 1.

    A slot of one format holds no copy of the other, so what both take is only told in slots.
    """
    largest = size.reshape(len(capacity), -1).max(axis=1).tolist()
    return tuple(one // each for one, each in zip(capacity, largest, strict=True)), np.ones_like(size)


def popular_places(counts: np.ndarray) -> np.ndarray:
    """Each expert's place in its layer by `counts` [layers, experts]: i64 [keys], 0 has the most; ties by id."""
    order = np.argsort(-counts, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.broadcast_to(np.arange(counts.shape[1]), counts.shape), axis=1)
    return places.ravel()
