"""The cache's groups: what a plan's capacity gives to each layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plan.capacity import Capacity
from engine.plan.tables import CachePlan
from engine.stacks.layer_curves import layer_curves, shared_out
from tracekit.errors import CapacityError, PlanError
from tracekit.trace import Trace


def groups_of(
    cache: CachePlan, experts_per_layer: Sequence[int], expert_bytes: Sequence[int], pinned: Sequence[int]
) -> tuple[tuple[int, ...], np.ndarray]:
    """The capacity of each group and the size of each key in its unit, as `Capacity.groups`.

    With `cache.split` the slots that the capacity gives in all are shared by the layers: `even`, the first ones having
    what is left over, or `curve`, one after the other to the layer whose LRU cache gains most hits by it on the trace
    `cache.split_from`. What is `pinned` is of each layer's share; the curve is that of the other experts.
    """
    capacity, size = Capacity.parse(cache.capacity).groups(experts_per_layer, max(experts_per_layer), expert_bytes)
    if cache.split is None:
        return capacity, size
    total = min(sum(capacity), sum(experts_per_layer))
    if cache.split == "even":
        return _evenly(total, experts_per_layer), size
    kept = np.bincount(np.array(pinned, np.int64) // max(experts_per_layer), minlength=len(experts_per_layer))
    if int(kept.sum()) > total:
        raise CapacityError(
            f"{int(kept.sum())} experts are pinned, but capacity {cache.capacity!r} is {total} slots in all: pin "
            "fewer, or give more"
        )
    trace = Trace.open(Path(cache.split_from or ""))
    if list(trace.manifest.experts_per_layer) != list(experts_per_layer):
        raise PlanError(f"cache.split_from: {trace.path} is of a model with other MoE layers or experts")
    most = (np.asarray(experts_per_layer) - kept).tolist()
    moving = shared_out(layer_curves(trace, pinned), total - int(kept.sum()), most)
    return tuple((kept + moving).tolist()), size


def _evenly(total: int, most: Sequence[int]) -> tuple[int, ...]:
    """As many slots for each layer as for any other, the first ones one more; none more than its `most`."""
    level = max(full for full in range(max(most) + 1) if sum(min(full, one) for one in most) <= total)
    shares = [min(level, one) for one in most]
    for layer, one in enumerate(most):
        if sum(shares) < total and shares[layer] < one:
            shares[layer] += 1
    return tuple(shares)
