"""The decision kernel: what a cache of experts does at each visit. One definition, interpreted or compiled.

The semantics are pinned by real engines' traces (docs/design.md). For each visit:

1. every distinct expert is looked up once; what is resident or staged is a hit;
2. staged experts of this layer are adopted into the cache if demanded, dropped if not;
3. each missing expert is loaded into the cache if room can be made, else into a staging buffer and not kept (a bypass);
4. recency is refreshed in (token, slot) order of last reference;
5. the prefetcher suggests experts of layer `layer + distance`; each that is neither resident nor staged is loaded into
   a staging buffer, or into the cache.

A visit never evicts an expert that it demands (the bound `belady-bypass` may, once it is used). Nothing here looks at
a clock.
"""

from typing import Any

from policies.cache_state import FLAGS, PINNED, PREFETCHED, RESIDENT, SLOT, STAGED, as_key
from policies.events import BYPASS, DROP, EVICT, HIT, HIT_PINNED, HIT_PREFETCHED, LOAD, PREFETCH, pack


def decide(cache: Any, eviction: Any, prefetcher: Any, batch: Any, events: Any) -> int:
    """Run every visit of `batch`; returns how many events were written to `events`.

    `prefetcher` is None where nothing is ever prefetched: then the code for it is not even compiled.
    """
    n = 0
    keeps_order = len(cache.last_use) > 0
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
            if cache.unit == 0:
                held += cache.size[expert] * (place & RESIDENT)
            # No branch on hit or miss, which nothing can predict: both are written, one is kept.
            events.code[n] = pack(HIT, expert, place >> SLOT)
            cache.missing[missing] = i
            if place & FLAGS > RESIDENT:
                staged += place & STAGED
                events.code[n] = pack(HIT_PREFETCHED if place & PREFETCHED else HIT_PINNED, expert, place >> SLOT)
                cache.place[expert] = place & ~PREFETCHED
            n += place != 0
            missing += place == 0

        if prefetcher is not None and cache.staged_count[0] > 0:
            n = settle_staged(cache, layer, now, events, n)
        if prefetcher is not None and staged > 0:
            for i in range(start, stop):
                expert = batch.demand[i]
                if cache.place[expert] & STAGED:
                    signal = batch.signal[i] if has_signal else 0.0
                    n, room = make_room(cache, eviction, group, expert, now, signal, held, events, n)
                    unstage(cache, expert)
                    if room:
                        keep(cache, expert, group, cache.place[expert] >> SLOT)
                        held += cache.size[expert]
                        eviction.on_insert(expert, group, now, signal)
                    else:
                        release(cache, expert)
        for m in range(missing):
            i = cache.missing[m]
            expert = batch.demand[i]
            signal = batch.signal[i] if has_signal else 0.0
            n, room = admit(cache, eviction, group, expert, now, signal, held, LOAD, events, n)
            if not room:
                if prefetcher is not None:
                    n = ensure_buffer(cache, now, events, n)
                slot = take_slot(cache)
                n = record(events, n, BYPASS, expert, slot)
                put_slot(cache, slot)
            elif cache.unit == 0:
                held += cache.size[expert]

        references = cache.clock[1] + 1 - start
        cache.clock[1] += stop - start
        for i in range(start, stop):
            expert = batch.recency[i]
            if cache.place[expert] & RESIDENT:
                if keeps_order:
                    cache.last_use[expert] = references + i
                eviction.on_reference(expert, group, now, batch.signal_recency[i] if has_signal else 0.0)

        if prefetcher is not None:
            prefetcher.observe(layer, batch.demand[start:stop])
            target = layer + cache.distance
            if target < len(cache.group_of):
                count = prefetcher.suggest(target, batch.hint[visit], cache.suggestion)
                n = look_ahead(cache, eviction, target, count, now, group, held, events, n)
        events.start[visit + 1] = n
    return n


def look_ahead(
    cache: Any, eviction: Any, target: int, count: int, now: int, group: int, held: int, events: Any, n: int
) -> int:
    """Prefetch the first `count` of the suggested experts of layer `target`."""
    for i in range(len(cache.suggestion)):
        if i >= count:
            break
        suggested = as_key(cache.suggestion[i])
        if cache.suggestion[i] < 0 or suggested // cache.experts != target:
            cache.fault[1] = 1
            continue
        to = cache.group_of[target]
        n = prefetch(cache, eviction, suggested, to, now, held if to == group else 0, events, n)
    return n


def record(events: Any, n: int, kind: int, expert: int, slot: int) -> int:
    """Append one event."""
    events.code[n] = pack(kind, expert, slot)
    return n + 1


def take_slot(cache: Any) -> int:
    """The slot that has been free longest: consecutive bypasses rotate through all free slots."""
    head = cache.free_head[0]
    cache.free_head[0] = head + 1 if head + 1 < len(cache.free) else 0
    cache.free_head[1] -= 1
    return cache.free[head]  # type: ignore[no-any-return]


def put_slot(cache: Any, slot: int) -> None:
    """The slot is free."""
    tail = cache.free_head[0] + cache.free_head[1]
    if tail >= len(cache.free):
        tail -= len(cache.free)
    cache.free[tail] = slot
    cache.free_head[1] += 1


def release(cache: Any, expert: int) -> None:
    """The expert is gone; its slot is free."""
    put_slot(cache, cache.place[expert] >> SLOT)
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
    if cache.unit > 0 and cache.used[group] + cache.unit > cache.capacity[group]:
        # Full, and one victim makes room for one expert: it takes the victim's place, slot and all.
        if cache.resident_count[group] == 0:
            return n, False
        found, victim = expel(cache, eviction, group, expert, now, signal)
        if not found:
            return n, False
        slot, position = cache.place[victim] >> SLOT, cache.position[victim]
        n = record(events, n, EVICT, victim, slot)
        cache.place[victim] = 0
        cache.place[expert] = slot << SLOT | RESIDENT
        cache.resident[position] = expert
        cache.position[expert] = position
    else:
        n, room = make_room(cache, eviction, group, expert, now, signal, held, events, n)
        if not room:
            return n, False
        slot = take_slot(cache)
        keep(cache, expert, group, slot)
    if kind == PREFETCH:
        cache.clock[1] += 1  # loading ahead is a reference
        if len(cache.last_use) > 0:
            cache.last_use[expert] = cache.clock[1]
    eviction.on_insert(expert, group, now, signal)
    return record(events, n, kind, expert, slot), True


def keep(cache: Any, expert: int, group: int, slot: int) -> None:
    """The expert becomes resident in `slot`."""
    position = cache.first[group] + cache.resident_count[group]
    cache.resident[position] = expert
    cache.position[expert] = position
    cache.resident_count[group] += 1
    cache.used[group] += cache.size[expert]
    cache.place[expert] = slot << SLOT | RESIDENT


def expel(cache: Any, eviction: Any, group: int, incoming: int, now: int, signal: float) -> tuple[bool, int]:
    """Ask the policy for a victim and tell it that the victim goes; whether there is one, and which.

    A victim must be one of the group's residents, not pinned and not demanded: any other is a fault.
    """
    named = eviction.victim(cache, group, incoming, now, signal)
    victim = as_key(named)
    if named < 0:
        return False, victim
    if named < len(cache.place) and cache.place[victim] & (RESIDENT | PINNED) == RESIDENT:
        position = cache.position[victim] - cache.first[group]
        if 0 <= position < cache.resident_count[group] and (cache.clairvoyant or cache.seen[victim] != now):
            eviction.on_evict(victim, group, now)
            return True, victim
    cache.fault[0] = 1
    return False, victim


def make_room(
    cache: Any, eviction: Any, group: int, expert: int, now: int, signal: float, held: int, events: Any, n: int
) -> tuple[int, bool]:
    """Evict until `expert` fits beside the `held` that must stay; returns the event count and whether it fits."""
    size = cache.size[expert]
    # With unequal sizes one load may need several victims: find out first whether they would be enough.
    if size > cache.capacity[group] or (cache.unit == 0 and held + size > cache.capacity[group]):
        return n, False
    while cache.used[group] + size > cache.capacity[group]:
        found, victim = expel(cache, eviction, group, expert, now, signal)
        if not found:
            return n, False
        n = record(events, n, EVICT, victim, cache.place[victim] >> SLOT)
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
            n = drop(cache, expert, events, n)
        else:
            i += 1
    return n


def drop(cache: Any, expert: int, events: Any, n: int) -> int:
    """Give up a staged expert."""
    unstage(cache, expert)
    n = record(events, n, DROP, expert, cache.place[expert] >> SLOT)
    release(cache, expert)
    return n


def ensure_buffer(cache: Any, now: int, events: Any, n: int) -> int:
    """Demand goes before prefetch: if no slot is free, the oldest staged expert that is not demanded gives way."""
    if cache.free_head[1] == 0:
        for i in range(cache.staged_count[0]):
            expert = cache.staged[i]
            if cache.seen[expert] != now:
                return drop(cache, expert, events, n)
    return n


def prefetch(cache: Any, eviction: Any, expert: int, group: int, now: int, held: int, events: Any, n: int) -> int:
    """Load a suggested expert ahead of demand, unless it is already there or there is nowhere to put it."""
    if cache.place[expert] != 0:
        return n
    if cache.into_cache:
        n, room = admit(cache, eviction, group, expert, now, 0.0, held, PREFETCH, events, n)
        if room:
            cache.place[expert] |= PREFETCHED
        return n
    if cache.staged_count[0] == len(cache.staged):
        return n
    slot = take_slot(cache)
    cache.place[expert] = slot << SLOT | STAGED | PREFETCHED
    cache.staged[cache.staged_count[0]] = expert
    cache.staged_count[0] += 1
    return record(events, n, PREFETCH, expert, slot)
