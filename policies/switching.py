"""Switching: what a cache keeps for requests of one domain makes place for what it keeps for another.

It is rare and small beside deciding, so it is plain Python over the arrays that compiled decisions work on.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from policies.admission.base import Admission
from policies.cache_state import (
    FREE_COUNT,
    PINNED,
    PREFETCHED,
    RESIDENT,
    SLOT,
    STAGED,
    VISITS,
    Batch,
    CacheState,
    allocate_slot,
    discard,
    evict,
    insert,
    unstage,
)
from policies.decide import load
from policies.events import EVICT, PREFETCH, EventBuffer, Events, pack
from policies.eviction.base import EvictionPolicy


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept for a domain: keys that are `pinned`, ascending, and keys that are loaded into the moving part of
    the cache (`warm`), the most wanted last."""

    name: str
    pinned: tuple[int, ...] = ()
    warm: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Domains:
    """The domains that a cache switches between. Who says of which one a request is, is engine.decisions.domains.

    `detect`: so many tokens of a request tell its domain, by `counts` i64 [domains, keys]; None: its label does, which
    stands in the file `labels` where the trace carries none.
    """

    kept: tuple[Kept, ...]
    counts: np.ndarray
    detect: int | None = None
    labels: str | None = None

    def __repr__(self) -> str:
        counts = hashlib.sha256(self.counts.tobytes()).hexdigest()
        return f"Domains({self.kept!r}, {counts}, {self.detect!r}, {self.labels!r})"


def switched(
    cache: CacheState, eviction: EvictionPolicy, admission: Admission | None, kept: Kept
) -> tuple[list[np.int64], bool]:
    """Make `cache` keep what another domain wants; returns the events, which belong behind the last visit's, and
    whether all was done.

    What was pinned and is no longer leaves, by slot, or stays in the moving part of the cache, if that has room and it
    is to be warm. What is pinned now and is there stays where it is, and the policy hears that it is gone; what is not
    there is loaded ahead. What is to be warm and is not there is loaded ahead into the cache, as prefetching into it
    does, and takes no place of other warm experts or of the last visit's.

    What the last visit used and could not keep may still be on its way to a computation: it is loaded behind the next
    one, if it is to be pinned, for which this has to be asked again; not at all, if it is to be warm.
    """
    now, place = int(cache.clock[VISITS]), cache.place
    coming, wanted = set(kept.pinned), set(kept.warm)
    events, left = [], set()
    gone = [key for key in np.flatnonzero(place & PINNED).tolist() if key not in coming]
    for key in sorted(gone, key=lambda key: int(place[key])):
        group, slot = cache.group_of[key // cache.experts], int(place[key]) >> SLOT
        if key in wanted and cache.used[group] + cache.size[key] <= cache.capacity[group]:
            fresh = place[key] & PREFETCHED
            insert(cache, key, group, slot)
            place[key] |= fresh
            eviction.on_insert(key, group, now, 0.0)
        else:
            events.append(pack(EVICT, key, slot))
            discard(cache, key)
            left.add(key)
    done = True
    for key in kept.pinned:
        there = int(place[key])
        if there & PINNED:
            continue
        if there & RESIDENT:
            group = cache.group_of[key // cache.experts]
            eviction.on_evict(key, group, now)
            if admission is not None:
                admission.on_evict(key, group, now)
            evict(cache, key, group)
            cache.ring[FREE_COUNT] -= 1  # its slot, the last that became free, stays its own
        elif there & STAGED:
            unstage(cache, key)
        elif cache.seen[key] == now:
            done = False
            continue
        else:
            there = allocate_slot(cache) << SLOT | PREFETCHED
            events.append(pack(PREFETCH, key, there >> SLOT))
        place[key] = there & ~(RESIDENT | STAGED) | PINNED
    return events + _warmed(cache, eviction, admission, kept.warm, left), done


def _warmed(
    cache: CacheState, eviction: EvictionPolicy, admission: Admission | None, warm: tuple[int, ...], left: set[int]
) -> list[np.int64]:
    """Load ahead into the cache what is wanted and not there, as far as there is room beside what else is wanted; none
    of what has just `left`."""
    now, place = int(cache.clock[VISITS]), cache.place
    room, wanted = cache.capacity.copy(), []
    for key in reversed(warm):  # the most wanted first
        group = cache.group_of[key // cache.experts]
        if not place[key] & PINNED and cache.size[key] <= room[group]:
            room[group] -= cache.size[key]
            wanted.append(key)
    missing = [key for key in reversed(wanted) if not place[key] and cache.seen[key] != now and key not in left]
    for key in wanted:
        if place[key] & RESIDENT:
            cache.seen[key] = now  # as if the visit had demanded it: it may not be evicted
    buffer, n = EventBuffer(np.empty(2 * len(missing) + len(cache.resident), np.int64), np.zeros(1, np.int64)), 0
    for key in missing:
        group = cache.group_of[key // cache.experts]
        n, loaded = _loaded(cache, eviction, admission, group, key, now, buffer, n)
        if loaded:
            place[key] |= PREFETCHED
            cache.seen[key] = now
    return list(buffer.code[:n])


def _loaded(
    cache: CacheState,
    eviction: EvictionPolicy,
    admission: Admission | None,
    group: int,
    key: int,
    now: int,
    events: EventBuffer,
    n: int,
) -> tuple[int, bool]:
    """Load `key` ahead into the cache, if room can be made; returns the event count and whether it was."""
    return load(
        cache=cache,
        eviction=eviction,
        admission=admission,
        group=group,
        expert=key,
        now=now,
        signal=0.0,
        held=_held(cache, group, now),
        kind=PREFETCH,
        events=events,
        n=n,
    )


def _held(cache: CacheState, group: int, now: int) -> int:
    """What residents of a group that may not be evicted take of the capacity."""
    first = cache.first[group]
    held = cache.resident[first : first + cache.resident_count[group]]
    return int(cache.size[held[cache.seen[held] == now]].sum())


def warmed(cache: CacheState, eviction: EvictionPolicy, keys: tuple[int, ...]) -> None:
    """Fill an empty cache with `keys`, the last ones being the most recent: of what does not fit the first stay out."""
    left, fitting = cache.capacity.copy(), []
    for key in reversed(keys):
        group = cache.group_of[key // cache.experts]
        if not cache.place[key] and cache.size[key] <= left[group]:
            left[group] -= cache.size[key]
            fitting.append(key)
    buffer, n = EventBuffer(np.empty(2 * len(fitting), np.int64), np.zeros(1, np.int64)), 0
    for key in reversed(fitting):
        group = cache.group_of[key // cache.experts]
        n, _ = _loaded(cache, eviction, None, group, key, 0, buffer, n)


def order_of_leaving(cache: CacheState, eviction: EvictionPolicy) -> list[int]:
    """The resident keys in the order in which the policy would let them go, group by group; both are used up."""
    cache.clock[VISITS] += 1  # nothing is demanded by a visit that has not been
    now, found = int(cache.clock[VISITS]), []
    for group in range(len(cache.capacity)):
        first = int(cache.first[group])
        while cache.resident_count[group]:
            residents = cache.resident[first : first + cache.resident_count[group]]
            named = eviction.victim(cache, group, int(residents[0]), now, 0.0)
            key = int(named) if named in residents else int(residents.min())  # of what it would keep for ever
            eviction.on_evict(key, group, now)
            evict(cache, key, group)
            found.append(key)
    return found


def in_plain_numbers(cache: CacheState) -> CacheState:
    """The same state with keys as plain Python may compute with them: unsigned ones wrap around. `written_back` ends
    what is done with it."""
    wide = {name: getattr(cache, name).astype(np.int64) for name in ("group_of", "resident", "position")}
    return cache._replace(**wide)


def written_back(plain: CacheState, cache: CacheState) -> None:
    """What was done to the state in plain numbers, done to the one that it was made from."""
    cache.resident[:] = plain.resident
    cache.position[:] = plain.position


def behind(codes: np.ndarray, events: Events) -> Events:
    """The events with others behind those of their last visit."""
    if not len(codes):
        return events
    start = events.start.copy()
    start[-1] += len(codes)
    # The slots of what leaves may be those of what the visit demanded.
    return Events(np.concatenate([events.code, codes]), start, events.first_visit)


def visits(batch: Batch, first: int, last: int) -> Batch:
    """The visits from number `first` of a batch up to `last`."""
    start = batch.start[first : last + 1]
    lookups = slice(int(start[0]), int(start[-1]))
    by_visit = {"layer": batch.layer[first:last], "start": start - start[0], "hint": batch.hint[first:last]}
    by_lookup = {name: getattr(batch, name)[lookups] for name in batch._fields if name not in by_visit}
    return Batch(**by_visit, **by_lookup)
