"""Stack positions under LRU: the smallest cache at which each lookup would have hit.

With LRU, the experts that a cache of n slots holds are the n most recent ones, so a lookup's position is the number of
distinct experts referenced since (Mattson et al. 1970, section 3), and one pass answers for every size. Each group
keeps a timeline: one bit per reference, set while it is the last of its expert. The bits behind are the position.

A visit that demands more than the cache holds keeps what it finds and the first of what it misses, not the most recent
of its experts. That, too, nests: what n slots then hold, n + 1 slots hold as well. So a visit of d experts has an order
of its own for its first d positions (ORDER), and where fewer than d other experts have been referenced since, the
position follows from that order (`displaced`), not from the timeline.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from engine.stack.kernel import OPTIONS
from tracekit.demand import Demand

WORDS = np.uint64(8)
"""Words of 64 references to a block of the timeline; each block's bits are counted."""
SLOT, ORDER, DEMAND, VISIT = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
"""What is known of an expert's last reference: its place in the timeline (-1 before the first), the expert's position
right after that visit, how many experts the visit demanded, and the group's running number of the visit."""

LruStack = namedtuple(
    "LruStack",
    [
        "group_of",  # i32 [layers]
        "blocks",  # i64: blocks of each group's timeline
        "bits",  # u64 [groups * blocks * WORDS]
        "count",  # i64 [groups * blocks]: bits set in each block
        "owner",  # i32 [groups * blocks * WORDS * 64]: whose reference it is
        "next",  # i64 [groups]: where the timeline continues
        "visits",  # i32 [groups]: visits so far
        "last",  # i32 [keys, 4]: SLOT, ORDER, DEMAND, VISIT of each expert
        "at",  # i32 [experts + 1]: scratch, -1: which expert of the demand is at a position
        "placed",  # u8 [experts + 1]: scratch, 0
    ],
)


def lru_stack(layers: int, experts: int, groups: int) -> LruStack:
    """An empty stack for each group: one per layer, or one for all layers."""
    keys = layers * experts
    blocks = max(1, -(-4 * (keys // groups) // (64 * int(WORDS))))
    words = groups * blocks * int(WORDS)
    return LruStack(
        group_of=(np.arange(layers) % groups).astype(np.int32),
        blocks=blocks,
        bits=np.zeros(words, np.uint64),
        count=np.zeros(groups * blocks, np.int64),
        owner=np.zeros(words * 64, np.int32),
        next=np.zeros(groups, np.int64),
        visits=np.zeros(groups, np.int32),
        last=np.full((keys, 4), -1, np.int32),
        at=np.full(experts + 1, -1, np.int32),
        placed=np.zeros(experts + 1, np.uint8),
    )


@njit(inline="always")
def ones(word):  # type: ignore[no-untyped-def]
    """The number of bits set, in the form that LLVM knows as one instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(**OPTIONS)
def behind(stack, group, slot):  # type: ignore[no-untyped-def]
    """How many experts of the group were last referenced after `slot`."""
    word = np.uint64(slot) >> np.uint64(6)
    block = word // WORDS
    blocks = np.uint64(stack.blocks)
    base = (np.uint64(group) * blocks + block) * WORDS
    within = word - block * WORDS
    newer = (~np.uint64(1)) << (np.uint64(slot) & np.uint64(63))
    total = np.uint64(0)
    # The same eight words whatever the slot: no branches, and two vector instructions.
    for w in range(WORDS):
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) if w > within else newer if w == within else np.uint64(0)
        total += ones(stack.bits[base + w] & mask)
    for b in range(block + np.uint64(1), blocks):
        total += np.uint64(stack.count[np.uint64(group) * blocks + b])
    return np.int64(total)


@njit(**OPTIONS)
def displaced(stack, group, key, recent):  # type: ignore[no-untyped-def]
    """The position of an expert that fewer others than its last visit demanded are more recent than.

    After that visit, n slots hold its first n experts by ORDER; since then `others` distinct experts have come in, each
    at the expense of the least recent of those.
    """
    base = group * stack.blocks * np.int64(WORDS) * 64
    newer = 0
    for slot in range(stack.last[key, SLOT] + 1, stack.next[group]):
        other = stack.owner[base + slot]
        if stack.last[other, SLOT] == slot:
            if stack.last[other, VISIT] != stack.last[key, VISIT]:
                break
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
def refer(stack, group, recency, first, last):  # type: ignore[no-untyped-def]
    """Make the experts recency[first:last] the most recent, in this order."""
    blocks = np.uint64(stack.blocks)
    block = np.uint64(group) * blocks
    base = block * WORDS
    begin = stack.next[group]
    at = np.uint64(begin) + base * np.uint64(64)
    for i in range(first, last):
        key = np.uint64(recency[i])
        old = stack.last[key, SLOT]
        if old >= 0:
            word = np.uint64(old) >> np.uint64(6)
            stack.bits[base + word] ^= np.uint64(1) << (np.uint64(old) & np.uint64(63))
            stack.count[block + word // WORDS] -= 1
        stack.last[key, SLOT] = np.int32(begin + (i - first))
        stack.owner[at + np.uint64(i - first)] = np.int32(key)
    append(stack, group, last - first)


@njit(**OPTIONS)
def append(stack, group, number):  # type: ignore[no-untyped-def]
    """Set the bits of the next `number` references."""
    slot = stack.next[group]
    end = slot + number
    stack.next[group] = end
    block = np.uint64(group) * np.uint64(stack.blocks)
    while slot < end:
        word = np.uint64(slot) >> np.uint64(6)
        bit = slot & 63
        take = min(64 - bit, end - slot)
        run = (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - take)) << np.uint64(bit)
        stack.bits[block * WORDS + word] |= run
        stack.count[block + word // WORDS] += take
        slot += take


@njit(**OPTIONS)
def compact(stack, group):  # type: ignore[no-untyped-def]
    """Close the gaps in a full timeline."""
    blocks = np.uint64(stack.blocks)
    block = np.uint64(group) * blocks
    slots = block * WORDS * np.uint64(64)
    kept = np.uint64(0)
    for w in range(blocks * WORDS):
        bits = stack.bits[block * WORDS + w]
        stack.bits[block * WORDS + w] = 0
        while bits != 0:
            lowest = bits & (~bits + np.uint64(1))
            bits ^= lowest
            key = stack.owner[slots + w * np.uint64(64) + ones(lowest - np.uint64(1))]
            stack.last[np.uint64(key), SLOT] = np.int32(kept)
            stack.owner[slots + kept] = key
            kept += np.uint64(1)
    for b in range(blocks):
        stack.count[block + b] = 0
    stack.next[group] = 0
    append(stack, group, np.int64(kept))


def lru_positions(stack: LruStack, demand: Demand, hits: np.ndarray) -> None:
    """Count every lookup of the next piece of demand at its position: `hits` [phases, positions] i64."""
    _positions(stack, demand.layer, demand.start, demand.keys, demand.recency, demand.phase, hits)


@njit(cache=True, **OPTIONS)
def _positions(stack, layer, start, keys, recency, phase, hits):  # type: ignore[no-untyped-def]
    layers = len(stack.group_of)
    room = stack.blocks * np.int64(WORDS) * 64
    nowhere = len(stack.at) - 1
    for visit in range(len(layer)):
        group = stack.group_of[layer[visit]]
        found = hits[phase[visit // layers]]
        first, last = start[visit], start[visit + 1]
        demand = last - first
        if stack.next[group] + demand > room:
            compact(stack, group)
        near = False
        for i in range(first, last):
            key = np.uint64(keys[i])
            slot = stack.last[key, SLOT]
            if slot < 0:
                continue
            position = behind(stack, group, slot)
            if position < stack.last[key, DEMAND]:
                if stack.last[key, VISIT] == stack.visits[group]:
                    position = np.int64(stack.last[key, ORDER])
                else:
                    position = displaced(stack, group, key, position)
            found[np.uint64(position)] += 1
            stack.at[np.uint64(position if position < demand else nowhere)] = i - first
            near |= position < demand
        stack.visits[group] += 1
        refer(stack, group, recency, first, last)
        if near:
            reorder(stack, keys, first, demand)
        for i in range(demand):
            key = np.uint64(keys[first + i])
            if not near:
                stack.last[key, ORDER] = np.int32(i)
            stack.last[key, DEMAND] = np.int32(demand)
            stack.last[key, VISIT] = stack.visits[group]


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
