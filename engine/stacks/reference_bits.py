"""Recency as a timeline of references, one bit each, set while it is the last of its expert: for groups of any size.

How many experts are more recent than one is how many bits are set behind its own.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from engine.stacks.options import OPTIONS

WORDS = np.uint64(8)
"""Words of 64 references to a block; each block's bits are counted."""

Timeline = namedtuple(
    "Timeline",
    [
        "blocks",  # i64: blocks of each group's timeline
        "bits",  # u64 [groups * blocks * WORDS]
        "count",  # i64 [groups * blocks]: bits set in each block
        "owner",  # u32 [groups * blocks * WORDS * 64]: whose reference it is
        "next",  # i64 [groups]: where the timeline continues
        "slot",  # i32 [keys]: each expert's last reference, -1 if none
    ],
)


def make_timeline(keys: int, groups: int) -> Timeline:
    """Room for four references to each expert, before the gaps must be closed."""
    blocks = max(1, -(-4 * (keys // groups) // (64 * int(WORDS))))
    words = groups * blocks * int(WORDS)
    return Timeline(
        blocks=blocks,
        bits=np.zeros(words, np.uint64),
        count=np.zeros(groups * blocks, np.int64),
        owner=np.zeros(words * 64, np.uint32),
        next=np.zeros(groups, np.int64),
        slot=np.full(keys, -1, np.int32),
    )


@njit(inline="always")
def ones(word):  # type: ignore[no-untyped-def]
    """The number of bits set, in the form that LLVM knows as one instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(**OPTIONS)
def behind(timeline, group, slot):  # type: ignore[no-untyped-def]
    """How many experts of the group were last referenced after `slot`."""
    word = np.uint64(slot) >> np.uint64(6)
    block = word // WORDS
    blocks = np.uint64(timeline.blocks)
    base = (np.uint64(group) * blocks + block) * WORDS
    within = word - block * WORDS
    newer = (~np.uint64(1)) << (np.uint64(slot) & np.uint64(63))
    total = np.uint64(0)
    # The same eight words whatever the slot: no branches, and two vector instructions.
    for w in range(WORDS):
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) if w > within else newer if w == within else np.uint64(0)
        total += ones(timeline.bits[base + w] & mask)
    for b in range(block + np.uint64(1), blocks):
        total += np.uint64(timeline.count[np.uint64(group) * blocks + b])
    return np.int64(total)


@njit(**OPTIONS)
def append(timeline, group, recency, first, last):  # type: ignore[no-untyped-def]
    """Make the experts recency[first:last] the most recent, in this order."""
    if timeline.next[group] + (last - first) > timeline.blocks * np.int64(WORDS) * 64:
        close_gaps(timeline, group)
    block = np.uint64(group) * np.uint64(timeline.blocks)
    base = block * WORDS
    begin = timeline.next[group]
    at = np.uint64(begin) + base * np.uint64(64)
    for i in range(first, last):
        key = recency[i]
        old = timeline.slot[key]
        if old >= 0:
            word = np.uint64(old) >> np.uint64(6)
            timeline.bits[base + word] ^= np.uint64(1) << (np.uint64(old) & np.uint64(63))
            timeline.count[block + word // WORDS] -= 1
        timeline.slot[key] = np.int32(begin + (i - first))
        timeline.owner[at + np.uint64(i - first)] = key
    set_next(timeline, group, last - first)


@njit(**OPTIONS)
def set_next(timeline, group, number):  # type: ignore[no-untyped-def]
    """Set the bits of the next `number` references."""
    slot = timeline.next[group]
    end = slot + number
    timeline.next[group] = end
    block = np.uint64(group) * np.uint64(timeline.blocks)
    while slot < end:
        word = np.uint64(slot) >> np.uint64(6)
        bit = slot & 63
        take = min(64 - bit, end - slot)
        run = (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - take)) << np.uint64(bit)
        timeline.bits[block * WORDS + word] |= run
        timeline.count[block + word // WORDS] += take
        slot += take


@njit(**OPTIONS)
def close_gaps(timeline, group):  # type: ignore[no-untyped-def]
    """Start the timeline anew with what is still set."""
    blocks = np.uint64(timeline.blocks)
    block = np.uint64(group) * blocks
    slots = block * WORDS * np.uint64(64)
    kept = np.uint64(0)
    for w in range(blocks * WORDS):
        bits = timeline.bits[block * WORDS + w]
        timeline.bits[block * WORDS + w] = 0
        while bits != 0:
            lowest = bits & (~bits + np.uint64(1))
            bits ^= lowest
            key = timeline.owner[slots + w * np.uint64(64) + ones(lowest - np.uint64(1))]
            timeline.slot[key] = np.int32(kept)
            timeline.owner[slots + kept] = key
            kept += np.uint64(1)
    for b in range(blocks):
        timeline.count[block + b] = 0
    timeline.next[group] = 0
    set_next(timeline, group, np.int64(kept))
