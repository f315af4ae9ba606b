"""The decision kernel: what a cache of experts does at each visit. One definition, interpreted or compiled.

The semantics are pinned by real engines' traces (docs/design.md). For each visit:

1. every distinct expert is looked up once; what is resident or staged is a hit;
2. staged experts of this layer are adopted into the cache if demanded, dropped if not;
3. each missing expert is loaded into the cache if room can be made, else streamed through a staging buffer;
4. recency is refreshed in (token, slot) order of last reference;
5. the prefetcher suggests experts of layer `layer + distance`; each that is neither resident nor staged is loaded into
   a staging buffer, or into the cache.

A visit never evicts an expert that it demands (the bound `belady-bypass` may, once it is used). Nothing here looks at
a clock.
"""

from collections import namedtuple
from typing import Any

import numpy as np

# What an event records. An expert that is evicted or dropped leaves before the load that takes its place is written.
HIT = 0  # the expert is resident, because the cache kept it
HIT_PINNED = 1  # the expert is resident and may never be evicted
HIT_PREFETCHED = 2  # the expert was loaded ahead and is demanded for the first time since
LOAD = 3  # demand load into the cache
STREAM = 4  # demand load through a staging buffer, not kept
PREFETCH = 5  # load ahead of demand
EVICT = 6  # the expert loses its cache slot
DROP = 7  # a staged expert is given up unused

# What `place` of an expert is made of; 0 is absent.
RESIDENT = 1  # in the cache
STAGED = 2  # in a staging buffer
PREFETCHED = 4  # loaded ahead and not demanded since
PINNED = 8  # may never be evicted

CacheState = namedtuple(
    "CacheState",
    [
        "experts",  # int: experts per layer; an expert's key is layer * experts + expert
        "group_of",  # i32 [layers]: the capacity group of a layer
        "size",  # i64 [keys]: what an expert takes of the capacity (1 when capacity counts slots)
        "uniform",  # bool: all sizes are equal
        "clairvoyant",  # bool: a bound decides, which may evict what the visit itself demands
        "capacity",  # i64 [groups]
        "used",  # i64 [groups]
        "place",  # u8 [keys]: 0 absent, else RESIDENT or STAGED, with PREFETCHED and PINNED
        "slot",  # i32 [keys]: the slot that holds the expert, -1 if absent
        "seen",  # i64 [keys]: the last visit that demanded the expert
        "last_use",  # i64 [keys]: running number of the expert's last reference
        "first",  # i64 [groups + 1]: where each group's part of `resident` starts
        "resident",  # i32: resident keys, group by group, unordered
        "resident_count",  # i64 [groups]
        "position",  # i32 [keys]: index in `resident`
        "free",  # i32 [slots]: ring of free slots, first in first out
        "free_head",  # i64 [2]: next to take, number free
        "staged",  # i32 [staging]: staged keys, oldest first
        "staged_count",  # i64 [1]
        "clock",  # i64 [2]: visits so far, references so far
        "into_cache",  # bool: prefetches go into the cache instead of staging buffers
        "distance",  # int: layers to look ahead
        "suggestion",  # i32 [count]: scratch for the prefetcher
        "fault",  # i64 [2]: set when a policy named a victim, or a prefetcher an expert, that it may not
        "missing",  # i64 [experts]: scratch, where in the demand the visit's missing experts stand
    ],
)

Batch = namedtuple(
    "Batch",
    [
        "layer",  # i32 [visits]
        "start",  # i64 [visits + 1]: a visit's part of the arrays below
        "demand",  # u32: distinct keys in (token, slot) order of first reference
        "recency",  # u32: the same keys in order of last reference
        "signal",  # f64, or empty: what the eviction policy reads, per lookup in order of `demand`
        "signal_recency",  # f64, or empty: the same in order of `recency`
        "hint",  # i32 [visits, n]: ranked keys of the target layer, padded with -1
    ],
)

Events = namedtuple(
    "Events",
    [
        "visit",  # i64: running number of the visit
        "kind",  # u8
        "expert",  # i32: key
        "slot",  # i32
    ],
)


def decide(cache: Any, eviction: Any, prefetcher: Any, batch: Any, events: Any) -> int:
    """Run every visit of `batch`; returns how many events were written to `events`."""
    n = 0
    has_signal = len(batch.signal) > 0
    for visit in range(len(batch.layer)):
        layer = batch.layer[visit]
        group = cache.group_of[layer]
        start, stop = batch.start[visit], batch.start[visit + 1]
        cache.clock[0] += 1
        now = cache.clock[0]

        missing = 0
        staged = 0
        held = 0  # what the visit's own resident experts take of the capacity; needed only where sizes differ
        for i in range(start, stop):
            expert = batch.demand[i]
            cache.seen[expert] = now
            place = cache.place[expert]
            signal = batch.signal[i] if has_signal else 0.0
            if place & RESIDENT:
                eviction.on_hit(expert, group, now, signal)
            else:
                eviction.on_miss(expert, group, now, signal)
            if not cache.uniform:
                held += cache.size[expert] * (place & RESIDENT)
            # No branch on hit or miss, which nothing can predict: both are written, one is kept.
            events.visit[n] = now - 1
            events.kind[n] = HIT
            events.expert[n] = expert
            events.slot[n] = cache.slot[expert]
            cache.missing[missing] = i
            if place > RESIDENT:
                staged += place & STAGED
                events.kind[n] = HIT_PREFETCHED if place & PREFETCHED else HIT_PINNED
                cache.place[expert] = place & (RESIDENT | STAGED | PINNED)
            n += place != 0
            missing += place == 0

        if cache.staged_count[0] > 0:
            n = settle_staged(cache, layer, now, events, n)
        if staged > 0:
            for i in range(start, stop):
                expert = batch.demand[i]
                if cache.place[expert] == STAGED:
                    signal = batch.signal[i] if has_signal else 0.0
                    n, room = make_room(cache, eviction, group, expert, now, signal, held, events, n)
                    unstage(cache, expert)
                    if room:
                        keep(cache, expert, group)
                        held += cache.size[expert]
                        eviction.on_insert(expert, group, now, signal)
                    else:
                        release(cache, expert)
        for m in range(missing):
            i = cache.missing[m]
            expert = batch.demand[i]
            signal = batch.signal[i] if has_signal else 0.0
            n, room = admit(cache, eviction, group, expert, now, signal, held, LOAD, events, n)
            if room:
                held += cache.size[expert]
            else:
                n = ensure_buffer(cache, now, events, n)
                cache.slot[expert] = take_slot(cache)
                n = record(events, n, now, STREAM, expert, cache.slot[expert])
                release(cache, expert)

        references = cache.clock[1] + 1 - start
        cache.clock[1] += stop - start
        for i in range(start, stop):
            expert = batch.recency[i]
            if cache.place[expert] & RESIDENT:
                cache.last_use[expert] = references + i
                eviction.on_reference(expert, group, now, batch.signal_recency[i] if has_signal else 0.0)

        prefetcher.observe(layer, batch.demand[start:stop])
        target = layer + cache.distance
        if len(cache.suggestion) > 0 and target < len(cache.group_of):
            count = prefetcher.suggest(target, batch.hint[visit], cache.suggestion)
            for i in range(min(count, len(cache.suggestion))):
                if cache.suggestion[i] < 0 or cache.suggestion[i] // cache.experts != target:
                    cache.fault[1] = 1
                    continue
                to = cache.group_of[target]
                n = prefetch(cache, eviction, cache.suggestion[i], to, now, held if to == group else 0, events, n)
    return n


def record(events: Any, n: int, visit: int, kind: int, expert: int, slot: int) -> int:
    """Append one event."""
    events.visit[n] = visit - 1
    events.kind[n] = kind
    events.expert[n] = expert
    events.slot[n] = slot
    return n + 1


def take_slot(cache: Any) -> int:
    """The slot that has been free longest: consecutive streamed experts rotate through all free slots."""
    head = cache.free_head[0]
    cache.free_head[0] = head + 1 if head + 1 < len(cache.free) else 0
    cache.free_head[1] -= 1
    return cache.free[head]  # type: ignore[no-any-return]


def release(cache: Any, expert: int) -> None:
    """The expert is gone; its slot is free."""
    tail = cache.free_head[0] + cache.free_head[1]
    if tail >= len(cache.free):
        tail -= len(cache.free)
    cache.free[tail] = cache.slot[expert]
    cache.free_head[1] += 1
    cache.slot[expert] = -1
    cache.place[expert] = 0


def admit(
    cache: Any,
    eviction: Any,
    group: int,
    expert: int,
    now: int,
    signal: float,
    held: int,
    kind: int,
    events: Any,
    n: int,
) -> tuple[int, bool]:
    """Load `expert` into the cache if room can be made; returns the event count and whether it was."""
    if cache.uniform and cache.used[group] + cache.size[expert] > cache.capacity[group]:
        # Full, and one victim makes room for one expert: it takes the victim's place, slot and all.
        if cache.resident_count[group] == 0:
            return n, False
        victim = eviction.victim(cache, group, expert, now, signal)
        if victim < 0 or not may_go(cache, group, victim, now):
            return n, False
        eviction.on_evict(victim, group, now)
        slot, position = cache.slot[victim], cache.position[victim]
        n = record(events, n, now, EVICT, victim, slot)
        cache.slot[victim] = -1
        cache.place[victim] = 0
        cache.slot[expert] = slot
        cache.place[expert] = RESIDENT
        cache.resident[position] = expert
        cache.position[expert] = position
    else:
        n, room = make_room(cache, eviction, group, expert, now, signal, held, events, n)
        if not room:
            return n, False
        cache.slot[expert] = take_slot(cache)
        keep(cache, expert, group)
    eviction.on_insert(expert, group, now, signal)
    return record(events, n, now, kind, expert, cache.slot[expert]), True


def keep(cache: Any, expert: int, group: int) -> None:
    """The expert, which already has a slot, becomes resident."""
    position = cache.first[group] + cache.resident_count[group]
    cache.resident[position] = expert
    cache.position[expert] = position
    cache.resident_count[group] += 1
    cache.used[group] += cache.size[expert]
    cache.place[expert] = RESIDENT


def may_go(cache: Any, group: int, victim: int, now: int) -> bool:
    """Whether the policy's victim is one of the group's residents, not pinned and not demanded; if not: a fault."""
    if victim < len(cache.place) and cache.place[victim] & (RESIDENT | PINNED) == RESIDENT:
        position = cache.position[victim] - cache.first[group]
        if 0 <= position < cache.resident_count[group] and (cache.clairvoyant or cache.seen[victim] != now):
            return True
    cache.fault[0] = 1
    return False


def make_room(
    cache: Any, eviction: Any, group: int, expert: int, now: int, signal: float, held: int, events: Any, n: int
) -> tuple[int, bool]:
    """Evict until `expert` fits beside the `held` that must stay; returns the event count and whether it fits."""
    size = cache.size[expert]
    # With unequal sizes one load may need several victims: find out first whether they would be enough.
    if size > cache.capacity[group] or (not cache.uniform and held + size > cache.capacity[group]):
        return n, False
    while cache.used[group] + size > cache.capacity[group]:
        victim = eviction.victim(cache, group, expert, now, signal)
        if victim < 0 or not may_go(cache, group, victim, now):
            return n, False
        eviction.on_evict(victim, group, now)
        n = record(events, n, now, EVICT, victim, cache.slot[victim])
        last = cache.first[group] + cache.resident_count[group] - 1
        position = cache.position[victim]
        moved = cache.resident[last]
        cache.resident[position] = moved
        cache.position[moved] = position
        cache.resident_count[group] -= 1
        cache.used[group] -= cache.size[victim]
        release(cache, victim)
    return n, True


def unstage(cache: Any, expert: int) -> None:
    """Take `expert` off the list of staged experts; its slot stays its own."""
    count = cache.staged_count[0]
    i = 0
    while cache.staged[i] != expert:
        i += 1
    while i + 1 < count:
        cache.staged[i] = cache.staged[i + 1]
        i += 1
    cache.staged_count[0] = count - 1


def settle_staged(cache: Any, layer: int, now: int, events: Any, n: int) -> int:
    """Drop what was staged for this layer and is not demanded; its chance has passed."""
    i = 0
    while i < cache.staged_count[0]:
        expert = cache.staged[i]
        if expert // cache.experts == layer and cache.seen[expert] != now:
            n = drop(cache, expert, now, events, n)
        else:
            i += 1
    return n


def drop(cache: Any, expert: int, now: int, events: Any, n: int) -> int:
    """Give up a staged expert."""
    unstage(cache, expert)
    n = record(events, n, now, DROP, expert, cache.slot[expert])
    release(cache, expert)
    return n


def ensure_buffer(cache: Any, now: int, events: Any, n: int) -> int:
    """Demand goes before prefetch: if no slot is free, the oldest staged expert that is not demanded gives way."""
    if cache.free_head[1] == 0:
        for i in range(cache.staged_count[0]):
            expert = cache.staged[i]
            if cache.seen[expert] != now:
                return drop(cache, expert, now, events, n)
    return n


def prefetch(cache: Any, eviction: Any, expert: int, group: int, now: int, held: int, events: Any, n: int) -> int:
    """Load a suggested expert ahead of demand, unless it is already there or there is nowhere to put it."""
    if cache.place[expert] != 0:
        return n
    if cache.into_cache:
        n, room = admit(cache, eviction, group, expert, now, 0.0, held, PREFETCH, events, n)
        if room:
            cache.clock[1] += 1
            cache.last_use[expert] = cache.clock[1]
            cache.place[expert] = RESIDENT | PREFETCHED
        return n
    if cache.staged_count[0] == len(cache.staged):
        return n
    cache.slot[expert] = take_slot(cache)
    cache.place[expert] = STAGED | PREFETCHED
    cache.staged[cache.staged_count[0]] = expert
    cache.staged_count[0] += 1
    return record(events, n, now, PREFETCH, expert, cache.slot[expert])


def event_buffer(lookups: int, visits: int, residents: int, staging: int, suggestions: int) -> Events:
    """Room for the events that `visits` visits with `lookups` lookups can write in the worst case."""
    loads = lookups + visits * suggestions
    size = lookups + 2 * loads + residents + staging
    return Events(
        np.empty(size, np.int64), np.empty(size, np.uint8), np.empty(size, np.int32), np.empty(size, np.int32)
    )
