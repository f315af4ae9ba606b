"""Stack positions under LRU: the smallest cache at which each lookup would have hit.

With LRU, the experts that a cache of n slots holds are the n most recent ones, so a lookup's position is the number of
distinct experts referenced since (Mattson et al. 1970, section 3), and one pass answers for every size. `Places` or a
`Timeline` says how many those are.

A visit that demands more than the cache holds keeps what it finds and the first of what it misses, not the most recent
of its experts. That, too, nests: what n slots then hold, n + 1 slots hold as well. So a visit of d experts has an order
of its own for its first d positions (ORDER), and where fewer than d other experts have been referenced since, the
position follows from that order (`displaced`), not from recency.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from engine.stacks.options import OPTIONS
from engine.stacks.places import MOST, Places, make_places, move_to_front
from engine.stacks.reference_bits import Timeline, append, behind, make_timeline
from tracekit.demand import Demand

ORDER, DEMAND, VISIT = np.uint64(0), np.uint64(1), np.uint64(2)
"""What is known of an expert's last reference: its position right after that visit, how many experts the visit demanded
(0 before the first), and the group's running number of the visit."""

LruStack = namedtuple(
    "LruStack",
    [
        "group_of",  # i32 [layers]
        "experts",  # i64: experts per layer
        "visits",  # i32 [groups]: visits so far
        "last",  # i32 [keys, 4]: ORDER, DEMAND, VISIT of each expert
        "at",  # i32 [experts + 1]: scratch, -1: which expert of the demand is at a position
        "placed",  # u8 [experts + 1]: scratch, 0
        "recent",  # Places or Timeline
    ],
)


def lru_stack(layers: int, experts: int, groups: int) -> LruStack:
    """An empty stack for each group: one per layer, or one for all layers."""
    keys = layers * experts
    small = keys // groups <= MOST
    return LruStack(
        group_of=(np.arange(layers) % groups).astype(np.int32),
        experts=experts,
        visits=np.zeros(groups, np.int32),
        last=np.zeros((keys, 4), np.int32),
        at=np.full(experts + 1, -1, np.int32),
        placed=np.zeros(experts + 1, np.uint8),
        recent=make_places(keys, groups, experts) if small else make_timeline(keys, groups),
    )


def lru_positions(stack: LruStack, demand: Demand, hits: np.ndarray, rows: np.ndarray) -> None:
    """Count every lookup of the next piece of demand at its position: `hits` [rows, positions]; `rows` [steps] says
    which row each step counts in."""
    # Compiled for each kind: what concerns None is left out.
    places = stack.recent if isinstance(stack.recent, Places) else None
    timeline = stack.recent if isinstance(stack.recent, Timeline) else None
    arrays = (demand.layer, demand.start, demand.keys, demand.recency, rows)
    _positions(stack._replace(recent=0), places, timeline, *arrays, hits)


@njit(cache=True, **OPTIONS)
def _positions(stack, places, timeline, layer, start, keys, recency, rows, hits):  # type: ignore[no-untyped-def]
    layers = len(stack.group_of)
    nowhere = len(stack.at) - 1
    for visit in range(len(layer)):
        group = stack.group_of[layer[visit]]
        found = hits[rows[visit // layers]]
        first, last = start[visit], start[visit + 1]
        demand = last - first
        near = False
        for i in range(first, last):
            key = np.uint64(keys[i])
            if stack.last[key, DEMAND] == 0:
                continue
            position = np.int64(0)
            if places is not None:
                position = np.int64(places.place[key])
            if timeline is not None:
                position = behind(timeline, group, timeline.slot[key])
            if position < stack.last[key, DEMAND]:
                if stack.last[key, VISIT] == stack.visits[group]:
                    position = np.int64(stack.last[key, ORDER])
                else:
                    position = displaced(stack, places, timeline, key, position)
            found[np.uint64(position)] += 1
            stack.at[np.uint64(position if position < demand else nowhere)] = i - first
            near |= position < demand
        stack.visits[group] += 1
        if places is not None:
            move_to_front(places, group, recency, first, last)
        if timeline is not None:
            append(timeline, group, recency, first, last)
        if near:
            reorder(stack, keys, first, demand)
        for i in range(demand):
            key = np.uint64(keys[first + i])
            if not near:
                stack.last[key, ORDER] = np.int32(i)
            stack.last[key, DEMAND] = np.int32(demand)
            stack.last[key, VISIT] = stack.visits[group]


@njit(**OPTIONS)
def displaced(stack, places, timeline, key, recent):  # type: ignore[no-untyped-def]
    """The position of an expert that fewer others than its last visit demanded are more recent than.

    After that visit, n slots hold its first n experts by ORDER; since then `others` distinct experts have come in, each
    at the expense of the least recent of those.
    """
    newer = 0
    first = key // np.uint64(stack.experts) * np.uint64(stack.experts)
    for other in range(first, first + np.uint64(stack.experts)):
        if stack.last[other, VISIT] == stack.last[key, VISIT] and stack.last[other, DEMAND] > 0:
            later = False
            if places is not None:
                later = places.place[other] < places.place[key]
            if timeline is not None:
                later = timeline.slot[other] > timeline.slot[key]
            if later:
                stack.placed[stack.last[other, ORDER]] = 1
                newer += 1
    others = recent - newer
    held = 0
    position = -1
    for size in range(1, stack.last[key, DEMAND] + 1):
        held += stack.placed[size - 1]
        stack.placed[size - 1] = 0
        if position < 0 and size > stack.last[key, ORDER] and size > others + held:
            position = size - 1
    return position


@njit(**OPTIONS)
def reorder(stack, keys, first, demand):  # type: ignore[no-untyped-def]
    """ORDER after a visit that found experts within the first `demand` positions: those stay, and the others fill up in
    order of first reference."""
    following = 0
    for position in range(demand):
        chosen = stack.at[position]
        stack.at[position] = -1
        if chosen < 0 or stack.placed[chosen]:
            while stack.placed[following]:
                following += 1
            chosen = following
        stack.placed[chosen] = 1
        stack.last[np.uint64(keys[first + chosen]), ORDER] = np.int32(position)
    for i in range(demand):
        stack.placed[i] = 0
