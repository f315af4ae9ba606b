"""Stack positions under Belady's MIN: the smallest cache at which each lookup would have hit.

A policy that evicts by one order of all experts, the same at every size, has caches that nest (Mattson et al. 1970,
section 4): the stack is repaired downwards, each position keeping the better of what was there and what was pushed out
above it. Here the better one is demanded again sooner, and a whole visit is repaired at once: what its experts push out
goes down in a pool, one expert for each of the visit's that is still to come. Positions hold next uses, not names:

    next visit that demands the expert * 2**16 + rank among that visit's experts, the most recently referenced first

so that comparing two numbers is comparing two experts, ties included, and a visit finds its own experts by its number.
"""

from collections import namedtuple
from collections.abc import Sequence

import numpy as np
from numba import njit

from engine.stacks.options import OPTIONS
from tracekit.demand import Demand

RANKS = np.uint64(1 << 16)
NEVER = np.uint64(1 << 63)
STRIDE = np.uint64(16)
"""Positions that are looked at before any is changed."""
SKIP = np.uint64(32)
"""Positions of a deep stack that are passed at once if none of them changes."""
DEEP = 512

BeladyStack = namedtuple(
    "BeladyStack",
    [
        "group_of",  # i32 [layers]
        "room",  # i64: length of each group's part of `next_use`; SKIP can be read at any position
        "next_use",  # u64 [groups * room]: the stack; NEVER from `depth` on
        "depth",  # i64 [groups]: experts in the stack
        "upcoming",  # u64 [keys]: each expert's next use, 0 before its first
        "pool",  # u64 [experts + 1]: scratch, what the visit has pushed out so far, ascending
        "touched",  # u64 [STRIDE + 1]: scratch, positions that may change
        "whose",  # i32 [experts]: scratch, which of the visit's experts has a rank
        "placed",  # u8 [experts]: scratch, 0
    ],
)


def belady_stack(layers: int, experts: int, groups: int) -> BeladyStack:
    """An empty stack for each group: one per layer, or one for all layers."""
    keys = layers * experts
    room = keys // groups + int(SKIP)
    return BeladyStack(
        group_of=(np.arange(layers) % groups).astype(np.int32),
        room=room,
        next_use=np.full(groups * room, NEVER, np.uint64),
        depth=np.zeros(groups, np.int64),
        upcoming=np.zeros(keys, np.uint64),
        pool=np.zeros(experts + 1, np.uint64),
        touched=np.zeros(int(STRIDE) + 1, np.uint64),
        whose=np.zeros(experts, np.int32),
        placed=np.zeros(experts, np.uint8),
    )


def next_uses(demands: Sequence[Demand]) -> list[np.ndarray]:
    """Each lookup's next use (see above), u64 in order of `keys`, for each piece of demand."""
    if not demands:
        return []
    visits = demands[-1].first_step * demands[-1].layers + demands[-1].visits
    upcoming = np.full(demands[0].layers * demands[0].experts, visits, np.int64)
    found = np.empty_like(upcoming, np.uint64)
    ranks = np.zeros(visits + 1, np.uint16)
    uses = []
    for demand in reversed(demands):
        use = np.empty(len(demand.keys), np.uint64)
        first_visit = demand.first_step * demand.layers
        _next_uses(demand.keys, demand.recency, demand.start, first_visit, upcoming, found, ranks, use)
        uses.append(use)
    return uses[::-1]


@njit(cache=True, **OPTIONS)
def _next_uses(keys, recency, start, first_visit, upcoming, found, ranks, use):  # type: ignore[no-untyped-def]
    never = len(ranks) - 1
    for visit in range(len(start) - 2, -1, -1):
        for i in range(start[visit + 1] - 1, start[visit] - 1, -1):
            key = recency[i]
            at = upcoming[key]
            found[key] = NEVER if at == never else np.uint64(at) * RANKS + np.uint64(ranks[at])
            ranks[at] += 1
            upcoming[key] = first_visit + visit
        for i in range(start[visit], start[visit + 1]):
            use[i] = found[keys[i]]


def belady_positions(stack: BeladyStack, demand: Demand, use: np.ndarray, hits: np.ndarray, rows: np.ndarray) -> None:
    """Count every lookup of the next piece of demand at its position: `hits` [rows, positions]; `rows` [steps] says
    which row each step counts in."""
    # Compiled twice: in a shallow stack even asking whether to skip costs an eighth of the speed.
    skip = SKIP if stack.room > DEEP else None
    first_visit = demand.first_step * demand.layers
    _positions(stack, first_visit, demand.layer, demand.start, demand.keys, use, rows, hits, skip)


@njit(cache=True, **OPTIONS)
def _positions(stack, first_visit, layer, start, keys, use, rows, hits, skip):  # type: ignore[no-untyped-def]
    layers = len(stack.group_of)
    for visit in range(len(layer)):
        group = stack.group_of[layer[visit]]
        found = hits[rows[visit // layers]]
        first, last = start[visit], start[visit + 1]
        base = np.uint64(group) * np.uint64(stack.room)
        depth = np.uint64(stack.depth[group])
        demand = np.uint64(last - first)
        # The next uses of the visit's own experts are below `later`, all others are not.
        later = np.uint64(first_visit + visit + 1) * RANKS
        for i in range(first, last):
            key = np.uint64(keys[i])
            if stack.upcoming[key] > 0:
                stack.whose[stack.upcoming[key] & (RANKS - np.uint64(1))] = i - first
            stack.upcoming[key] = use[i]
        pooled = fill_top(stack, base, depth, demand, later, use, first, found)
        left = repair(stack, base, depth, demand, later, pooled, found, skip)
        # What is still in the pool made way for experts never seen before: the stack grows.
        depth = max(depth, demand)
        for at in range(left, pooled):
            stack.next_use[base + depth] = stack.pool[at]
            depth += np.uint64(1)
        stack.depth[group] = np.int64(depth)


@njit(**OPTIONS)
def fill_top(stack, base, depth, demand, later, use, first, found):  # type: ignore[no-untyped-def]
    """Put the visit's experts on top: those found there stay, the others fill up in order of first reference (what a
    cache smaller than the demand would hold). Pools what was there; returns how many."""
    pooled = np.uint64(0)
    following = np.uint64(0)
    for position in range(demand):
        there = stack.next_use[base + position]
        chosen = following
        own = position < depth and there < later
        if own:
            found[position] += 1
            chosen = np.uint64(stack.whose[there & (RANKS - np.uint64(1))])
        elif position < depth:
            pour(stack.pool, np.uint64(0), pooled, there)
            pooled += np.uint64(1)
        if not own or stack.placed[chosen]:
            while stack.placed[following]:
                following += np.uint64(1)
            chosen = following
        stack.placed[chosen] = 1
        stack.next_use[base + position] = use[np.uint64(first) + chosen]
    for i in range(demand):
        stack.placed[i] = 0
    return pooled


@njit(**OPTIONS)
def repair(stack, base, depth, position, later, pooled, found, skip):  # type: ignore[no-untyped-def]
    """Take the pool down the stack: each position keeps what is demanded soonest, or, where one of the visit's own
    experts was, takes it from the pool. Returns where the rest of the pool begins."""
    stack.pool[pooled] = ~np.uint64(0)
    head = np.uint64(0)
    while position < depth and head < pooled:
        # Unsigned: the visit's own experts come out above all others.
        width = stack.pool[head] - later
        if skip is not None:
            changes = False
            for at in range(base + position, base + position + skip):
                changes |= stack.next_use[at] - later > width
            if not changes:
                position += skip
                continue
        end = min(position + STRIDE, depth)
        count = np.uint64(0)
        for at in range(position, end):
            stack.touched[count] = at
            count += np.uint64(stack.next_use[base + at] - later > width)
        for i in range(count):
            at = stack.touched[i]
            there = stack.next_use[base + at]
            if there - later > stack.pool[head] - later:
                stack.next_use[base + at] = stack.pool[head]
                pour_out(stack.pool, head, pooled, there)
                # The visit's own expert is now the pool's first: it leaves at once.
                own = there < later
                found[at] += own
                head += np.uint64(own)
        position = end
    return head


@njit(inline="always")
def pour(pool, first, last, value):  # type: ignore[no-untyped-def]
    """Put `value` among the ascending pool[first:last], what is above it one further; without branches."""
    for at in range(first, last):
        here = pool[at]
        pool[at] = min(here, value)
        value = max(here, value)
    pool[last] = value


@njit(inline="always")
def pour_out(pool, first, last, value):  # type: ignore[no-untyped-def]
    """The same after taking out pool[first]: what is below `value` moves up instead."""
    for at in range(first + np.uint64(1), last):
        here = pool[at]
        pool[at - np.uint64(1)] = min(here, value)
        value = max(here, value)
    pool[last - np.uint64(1)] = value
