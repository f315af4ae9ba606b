"""Whether decisions that somebody else made can be: visit by visit, against what is demanded and what is there."""

from typing import NamedTuple

import numpy as np
from numba import njit

from policies.events import (
    ADMIT,
    BYPASS,
    HIT_PINNED,
    HIT_PREFETCHED,
    HOST,
    KIND_SHIFT,
    PREFETCH,
    SLOT_MASK,
    SLOT_SHIFT,
)

# What may be wrong with a row, or with a visit that lacks one.
FINE, NOT_DEMANDED, TWICE, NO_SLOT, NOT_THERE, NOT_PREFETCHED, IS_THERE, TAKEN, MISSING = range(9)

FRESH, PASSING = 1, 2
"""A prefetched expert that finds no room in the cache leaves its buffer after its first use, and no event says so."""

WORDS = {
    NOT_DEMANDED: "looks up expert {expert}, which no token of the visit chose",
    TWICE: "names expert {expert} twice: one lookup, and one prefetch, of each expert at a visit",
    NO_SLOT: "uses slot {slot}: they are numbered from 0 to {last}",
    NOT_THERE: "says {kind} of expert {expert} in slot {slot}, where it is not",
    NOT_PREFETCHED: "says {kind} of expert {expert}, which no prefetch brought; it is a hit",
    IS_THERE: "says {kind} of expert {expert}, which is on the device already, in slot {held}",
    TAKEN: "puts expert {expert} into slot {slot}, where a prefetch waits for its use; evict or drop that first",
    MISSING: "lacks expert {expert}, which its tokens chose: hit, host, load, bypass or admit says how it was served",
}


class Held(NamedTuple):
    """What the slots hold, from piece to piece of the decisions."""

    holder: np.ndarray  # i64 [slots]: the key in a slot, -1 for none
    place: np.ndarray  # i64 [keys]: the slot of an expert, -1 for none
    touched: np.ndarray  # u8 [slots]: some row named the slot
    fresh: np.ndarray  # u8 [keys]: FRESH if prefetched and not demanded since, PASSING if demanded once since
    wanted: np.ndarray  # i64 [keys]: the last visit that demands the expert, counted from 1
    served: np.ndarray  # i64 [keys]: the last visit that looked it up
    ahead: np.ndarray  # i64 [keys]: the last visit that prefetched it
    used: np.ndarray  # i64 [slots]: the last visit that used the slot
    warm: bool  # experts may be there from the start


def nothing_held(slots: int, keys: int, *, warm: bool) -> Held:
    """All slots free."""
    none, expert = np.full(slots, -1, np.int64), np.zeros(keys, np.int64)
    return Held(
        holder=none,
        place=np.full(keys, -1, np.int64),
        touched=np.zeros(slots, np.uint8),
        fresh=np.zeros(keys, np.uint8),
        wanted=expert,
        served=expert.copy(),
        ahead=expert.copy(),
        used=np.zeros(slots, np.int64),
        warm=warm,
    )


@njit(cache=True, nogil=True)
def settle(
    held: Held,
    kind: np.ndarray,
    key: np.ndarray,
    slot: np.ndarray,
    rows: np.ndarray,
    demanded: np.ndarray,
    start: np.ndarray,
    first_visit: int,
    code: np.ndarray,
    wrong: np.ndarray,
) -> bool:
    """Go through whole visits; writes their events to `code` [rows], hits first; returns whether they are orderly.

    kind, key, slot [rows]; `rows` [visits + 1] and `start` [visits + 1] delimit each visit's rows and its part of
    `demanded` [keys]. The first fault is written to wrong [4]: what, visit, row (-1: none), key.
    """
    orderly = True
    for visit in range(len(rows) - 1):
        now = first_visit + visit + 1
        n = rows[visit]
        for i in range(start[visit], start[visit + 1]):
            held.wanted[demanded[i]] = now
        lookups = 0
        for stage in range(2):  # hits are of what was there before; then everything else, in its order
            for row in range(rows[visit], rows[visit + 1]):
                if (kind[row] > HIT_PREFETCHED) != (stage == 1):
                    continue
                problem, said = FINE, kind[row]
                if kind[row] != HOST and (slot[row] < 0 or slot[row] >= len(held.holder)):
                    problem = NO_SLOT
                elif kind[row] <= ADMIT and held.wanted[key[row]] != now:
                    problem = NOT_DEMANDED
                elif kind[row] <= ADMIT and held.served[key[row]] == now:
                    problem = TWICE
                elif kind[row] <= HIT_PREFETCHED:
                    problem, said = _hit(held, said, key[row], slot[row])
                elif kind[row] == HOST:
                    there = held.place[key[row]] >= 0 and held.fresh[key[row]] != PASSING
                    problem = IS_THERE if there else FINE
                elif kind[row] <= PREFETCH:
                    problem = _load(held, said, key[row], slot[row], now)
                    orderly = orderly and held.used[slot[row]] != now
                else:
                    problem = _leave(held, key[row], slot[row])
                if problem != FINE:
                    wrong[0], wrong[1], wrong[2], wrong[3] = problem, first_visit + visit, row, key[row]
                    return False
                if kind[row] <= ADMIT:
                    held.served[key[row]] = now
                    lookups += 1
                if kind[row] <= BYPASS and kind[row] != HOST:
                    held.used[slot[row]] = now
                if kind[row] != HOST:
                    held.touched[slot[row]] = 1
                code[n] = said << KIND_SHIFT | (slot[row] & SLOT_MASK) << SLOT_SHIFT | key[row]
                n += 1
        if lookups < start[visit + 1] - start[visit]:
            for i in range(start[visit], start[visit + 1]):
                if held.served[demanded[i]] != now:
                    wrong[0], wrong[1], wrong[2], wrong[3] = MISSING, first_visit + visit, -1, demanded[i]
                    return False
    return orderly


@njit(cache=True, nogil=True)
def _hit(held: Held, kind: int, key: int, slot: int) -> tuple[int, int]:
    """A hit, and as which kind it counts: the first one since a prefetch is that prefetch's."""
    early = held.place[key] < 0 and held.touched[slot] == 0
    if early and (held.warm or kind == HIT_PINNED):  # there from the start
        held.place[key], held.holder[slot] = slot, key
    elif held.place[key] != slot:
        return NOT_THERE, kind
    elif held.fresh[key] == FRESH:
        held.fresh[key] = PASSING
        return FINE, HIT_PREFETCHED
    elif kind == HIT_PREFETCHED:
        return NOT_PREFETCHED, kind
    held.fresh[key] = 0
    return FINE, kind


@njit(cache=True, nogil=True)
def _load(held: Held, kind: int, key: int, slot: int, now: int) -> int:
    before = held.holder[slot]
    if held.place[key] >= 0:
        if held.fresh[key] != PASSING:
            return IS_THERE
        held.holder[held.place[key]] = held.place[key] = -1
    if kind == PREFETCH and held.ahead[key] == now:
        return TWICE
    if before >= 0 and held.fresh[before] == FRESH:
        return TAKEN
    if before >= 0:  # what was used needs no row to leave
        held.place[before] = -1
    held.holder[slot] = -1
    if kind != BYPASS:
        held.holder[slot], held.place[key] = key, slot
    held.fresh[key] = 0
    if kind == PREFETCH:
        held.fresh[key], held.ahead[key] = FRESH, now
    return FINE


@njit(cache=True, nogil=True)
def _leave(held: Held, key: int, slot: int) -> int:
    early = held.warm and held.place[key] < 0 and held.touched[slot] == 0
    if held.place[key] != slot and not early:
        return NOT_THERE
    held.place[key] = held.holder[slot] = -1
    held.fresh[key] = 0
    return FINE
