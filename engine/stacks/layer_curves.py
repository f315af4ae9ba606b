"""Hits of an LRU cache of each layer at every size, in one pass, and how a total of slots is best shared by them.

The experts that are pinned are none of the cache's: their lookups are left out, as the cache never sees them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from engine.stacks.lru import LruStack, lru_positions, lru_stack
from tracekit.arrays import F64, I64
from tracekit.demand import Demand, iter_demand
from tracekit.trace import Trace


def layer_curves(trace: Trace, pinned: Collection[int] = ()) -> I64:
    """Hits [layers, experts + 1] of an LRU cache with 0, 1, ... slots in each layer, beside the `pinned` keys."""
    layers, experts = trace.layers, trace.num_experts
    moving = np.ones(layers * experts, np.bool_)
    moving[list(pinned)] = False
    stacks: list[LruStack] = [lru_stack(1, experts, 1) for _ in range(layers)]
    found = np.zeros((layers, 1, experts), np.int64)
    for demand in iter_demand(trace):
        rows = np.zeros(demand.steps, np.int64)
        for layer, part in enumerate(_by_layer(demand, moving)):
            lru_positions(stacks[layer], part, found[layer], rows)
    hits = np.zeros((layers, experts + 1), np.int64)
    np.cumsum(found[:, 0], axis=1, out=hits[:, 1:])
    return hits


def shared_out(hits: I64, total: int, most: Sequence[int]) -> list[int]:
    """How many of `total` slots each layer gets: one after the other, each where it gains the most hits.

    The gain is that of the concave hull of the layer's curve `hits` [layers, slots + 1], so that a layer whose first
    slots hit nothing is judged by what more of them gain. Ties: the lowest layer. No layer gets more than its `most`.
    """
    gains = np.stack([hull_gains(row) for row in hits])
    layer, slot = np.nonzero(np.arange(gains.shape[1]) < np.asarray(most)[:, None])
    # Within a layer gains never rise, so its slots are taken in order.
    order = np.lexsort((slot, layer, -gains[layer, slot]))[:total]
    return [int(count) for count in np.bincount(layer[order], minlength=len(hits))]


def hull_gains(hits: I64) -> F64:
    """What each further slot gains, [slots], along the least concave curve that is nowhere below `hits` [slots + 1]."""
    corners: list[int] = []
    values = hits.tolist()
    for size, value in enumerate(values):
        # A corner on or below the line from the one before it to here is none. Whole numbers: exact.
        while len(corners) > 1 and (values[corners[-1]] - values[corners[-2]]) * (size - corners[-2]) <= (
            value - values[corners[-2]]
        ) * (corners[-1] - corners[-2]):
            corners.pop()
        corners.append(size)
    gains = np.empty(len(values) - 1)
    for first, last in pairwise(corners):
        gains[first:last] = (values[last] - values[first]) / (last - first)
    return gains


def _by_layer(demand: Demand, moving: np.ndarray) -> Iterator[Demand]:
    """The demand of each layer as of a model of that layer alone, without the experts that do not move."""
    for layer in range(demand.layers):
        kept, order = (
            (keys // np.uint32(demand.experts) == layer) & moving[keys] for keys in (demand.keys, demand.recency)
        )
        before = np.concatenate([[0], np.cumsum(kept)])
        base = np.uint32(layer * demand.experts)
        yield replace(
            demand,
            layers=1,
            layer=np.zeros(demand.steps, np.int32),
            start=np.append(before[demand.start[:-1]][demand.layer == layer], before[-1]).astype(np.int64),
            keys=demand.keys[kept] - base,
            recency=demand.recency[order] - base,
            tokens=demand.tokens[kept],
        )
