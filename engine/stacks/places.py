"""Recency as a place for each expert, 0 the most recent: for groups of up to some hundreds of experts.

Refreshing a visit's experts moves all others back by the number of those that were behind them: a few comparisons that
the processor does for dozens of experts at once.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from engine.stacks.options import OPTIONS

MOST = 768
"""Experts in a group; with more, a timeline is faster."""

Places = namedtuple(
    "Places",
    [
        "members",  # i64: experts in a group; those of group g have the keys from g * members on
        "place",  # u8 or u16 [keys]
        "before",  # like place [members]: scratch
        "moved",  # like place [experts + 8]: scratch
    ],
)


def make_places(keys: int, groups: int, experts: int) -> Places:
    """Experts not referenced yet stand last, in any order."""
    members = keys // groups
    small = np.uint8 if members <= 256 else np.uint16
    return Places(
        members=members,
        place=np.tile(np.arange(members, dtype=small), groups),
        before=np.zeros(members, small),
        moved=np.zeros(experts + 8, small),
    )


@njit(**OPTIONS)
def move_to_front(places, group, recency, first, last):  # type: ignore[no-untyped-def]
    """Make the experts recency[first:last] the most recent, in this order."""
    place, before, moved = places.place, places.before, places.moved
    demand = np.uint64(last - first)
    for i in range(demand):
        moved[i] = place[recency[np.uint64(first) + i]]
    for i in range(demand, demand + np.uint64(8)):
        moved[i] = 0
    members = np.uint64(places.members)
    base = np.uint64(group) * members
    for i in range(members):
        before[i] = place[base + i]
    for eight in range(np.uint64(0), demand, np.uint64(8)):
        m0, m1, m2, m3 = moved[eight], moved[eight + 1], moved[eight + 2], moved[eight + 3]
        m4, m5, m6, m7 = moved[eight + 4], moved[eight + 5], moved[eight + 6], moved[eight + 7]
        for i in range(members):
            b = before[i]
            place[base + i] += (
                np.uint8(b < m0) + np.uint8(b < m1) + np.uint8(b < m2) + np.uint8(b < m3)
                + np.uint8(b < m4) + np.uint8(b < m5) + np.uint8(b < m6) + np.uint8(b < m7)
            )  # fmt: skip
    for i in range(demand):
        place[recency[np.uint64(first) + i]] = demand - np.uint64(1) - i
