"""The decision kernel: what a cache of experts does at each visit. One definition, interpreted or compiled.

The semantics are pinned by real engines' traces (docs/design.md). For each visit:

1. every distinct expert is looked up once; what is resident or staged is a hit;
2. staged experts of this layer are adopted into the cache if demanded, dropped if not;
3. each missing expert is loaded into the cache if room can be made, else into a staging buffer and not kept (a bypass);
   where the plan limits what is admitted, or has the host compute misses, policies.misses says which;
4. recency is refreshed in (token, slot) order of last reference;
5. the prefetcher suggests experts of layer `layer + distance` (past the last one, where that is asked for, of the next
   step's); each that is neither resident nor staged is loaded into
   a staging buffer, or into the cache.

A visit never evicts an expert that it demands (the bound `belady-bypass` may, once it is used). Of pinned experts the
log alone tells: they are no part of the capacity that policies share out, and no hook hears of them. Nothing here looks
at a clock.
"""

from policies.admission.base import Admission
from policies.cache_state import (
    BAD_SUGGESTION,
    BAD_VICTIM,
    FLAGS,
    FREE_COUNT,
    PINNED,
    PREFETCHED,
    REFERENCES,
    RESIDENT,
    SLOT,
    STAGED,
    VISITS,
    Batch,
    CacheState,
    allocate_slot,
    as_key,
    discard,
    evict,
    free_slot,
    insert,
    stage,
    unstage,
)
from policies.events import (
    ADMIT,
    BYPASS,
    DROP,
    EVICT,
    HIT,
    HIT_PINNED,
    HIT_PREFETCHED,
    HOST,
    LOAD,
    NO_SLOT,
    PREFETCH,
    EventBuffer,
    pack,
)
from policies.eviction.base import EvictionPolicy
from policies.misses import SPLIT, Misses, gate_share, gate_total, place_misses, refill
from policies.prefetch.base import Prefetcher


def decide(
    cache: CacheState,
    eviction: EvictionPolicy,
    prefetcher: Prefetcher | None,
    misses: Misses | None,
    admission: Admission | None,
    batch: Batch,
    events: EventBuffer,
) -> int:
    """Run every visit of `batch`; returns how many events were written to `events`.

    `prefetcher` is None where nothing is ever prefetched; `misses` where every miss is copied, and kept if there is
    room; `admission` where nothing more is asked. Then the code for it is not even compiled.
    """
    n = 0
    keeps_order = len(cache.last_use) > 0
    has_signal = len(batch.signal) > 0
    for visit in range(len(batch.layer)):
        layer = batch.layer[visit]
        group = cache.group_of[layer]
        start, stop = batch.start[visit], batch.start[visit + 1]
        cache.clock[VISITS] += 1
        now = cache.clock[VISITS]

        missing = 0
        staged = 0
        weight = 0.0
        if misses is not None:
            refill(misses, layer, len(cache.group_of))
            weight = gate_total(batch, start, stop)
        held = 0  # what the visit's own resident experts take of the capacity; needed only where sizes differ
        for i in range(start, stop):
            expert = batch.demand[i]
            cache.seen[expert] = now
            place = cache.place[expert]
            signal = batch.signal[i] if has_signal else 0.0
            if place & RESIDENT:
                eviction.on_hit(expert, group, now, signal)
            elif place & PINNED == 0:
                eviction.on_miss(expert, group, now, signal)
            if admission is not None and place != 0 and place & PINNED == 0:
                admission.on_hit(expert, group, now, gate_share(batch, i, weight))
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
            n = drop_unused(cache, layer, now, events, n)
        if prefetcher is not None and staged > 0:
            for i in range(start, stop):
                expert = batch.demand[i]
                if cache.place[expert] & STAGED:
                    signal = batch.signal[i] if has_signal else 0.0
                    n, room = make_room(cache, eviction, admission, group, expert, now, signal, held, events, n)
                    unstage(cache, expert)
                    if room:
                        insert(cache, expert, group, cache.place[expert] >> SLOT)
                        held += cache.size[expert]
                        eviction.on_insert(expert, group, now, signal)
                    else:
                        discard(cache, expert)
        if misses is not None:
            place_misses(misses, cache, batch, layer, missing)
            asked = missing
            missing = 0
            n, held = serve(
                cache, eviction, prefetcher, misses, admission, batch, group, now, asked, weight, held, events, n
            )
        for m in range(missing):
            i = cache.missing[m]
            expert = batch.demand[i]
            signal = batch.signal[i] if has_signal else 0.0
            n, room = load(cache, eviction, admission, group, expert, now, signal, held, LOAD, events, n)
            if not room:
                if prefetcher is not None:
                    n = ensure_buffer(cache, now, events, n)
                n = bypass(cache, expert, events, n)
            elif cache.unit == 0:
                held += cache.size[expert]

        references = cache.clock[REFERENCES] + 1 - start
        cache.clock[REFERENCES] += stop - start
        for i in range(start, stop):
            expert = batch.recency[i]
            if cache.place[expert] & RESIDENT:
                if keeps_order:
                    cache.last_use[expert] = references + i
                eviction.on_reference(expert, group, now, batch.signal_recency[i] if has_signal else 0.0)

        if prefetcher is not None:
            prefetcher.observe(layer, batch.demand[start:stop])
            target = layer + cache.distance
            if cache.wraps and target >= len(cache.group_of):
                target -= len(cache.group_of)
            if target < len(cache.group_of):
                count = prefetcher.suggest(target, batch.hint[visit], cache.suggestion)
                n = prefetch(cache, eviction, admission, target, now, group, held, events, n, count)
        events.start[visit + 1] = n
    return n


def serve(
    cache: CacheState,
    eviction: EvictionPolicy,
    prefetcher: Prefetcher | None,
    misses: Misses,
    admission: Admission | None,
    batch: Batch,
    group: int,
    now: int,
    missing: int,
    weight: float,
    held: int,
    events: EventBuffer,
    n: int,
) -> tuple[int, int]:
    """Serve a visit's misses where they are not all copied and kept; returns the event count and what is held then.

    The admission policy is asked whether or not an admission is left.
    """
    for m in range(missing):
        i = cache.missing[m]
        expert = batch.demand[i]
        signal = batch.signal[i] if len(batch.signal) > 0 else 0.0
        hosted = misses.hosted[m] > 0
        room = not hosted or misses.where != SPLIT
        if admission is not None and room:
            room = admission.admits(expert, group, now, gate_share(batch, i, weight))
        if room and misses.left[0] > 0:
            kind = ADMIT if hosted else LOAD
            n, room = load(cache, eviction, admission, group, expert, now, signal, held, kind, events, n)
        else:
            room = False
        if room:
            misses.left[0] -= 1
            held += cache.size[expert] * (cache.unit == 0)
        elif hosted:
            n = record(events, n, HOST, expert, NO_SLOT)
        else:
            if prefetcher is not None:
                n = ensure_buffer(cache, now, events, n)
            n = bypass(cache, expert, events, n)
    return n, held


def bypass(cache: CacheState, expert: int, events: EventBuffer, n: int) -> int:
    """Load the expert through a staging buffer: it is not kept."""
    slot = allocate_slot(cache)
    n = record(events, n, BYPASS, expert, slot)
    free_slot(cache, slot)
    return n


def prefetch(
    cache: CacheState,
    eviction: EvictionPolicy,
    admission: Admission | None,
    target: int,
    now: int,
    group: int,
    held: int,
    events: EventBuffer,
    n: int,
    count: int,
) -> int:
    """Load the first `count` suggested experts of layer `target` ahead, those that are not there and have a place."""
    for i in range(len(cache.suggestion)):
        if i >= count:
            break
        expert = as_key(cache.suggestion[i])
        if cache.suggestion[i] < 0 or expert // cache.experts != target:
            cache.fault[BAD_SUGGESTION] = 1
        elif cache.place[expert] == 0 and cache.into_cache:
            to = cache.group_of[target]
            beside = held if to == group else 0
            n, room = load(cache, eviction, admission, to, expert, now, 0.0, beside, PREFETCH, events, n)
            if room:
                cache.place[expert] |= PREFETCHED
        elif cache.place[expert] == 0 and cache.staged_count[0] < len(cache.staged):
            slot = allocate_slot(cache)
            stage(cache, expert, slot)
            n = record(events, n, PREFETCH, expert, slot)
    return n


def record(events: EventBuffer, n: int, kind: int, expert: int, slot: int) -> int:
    """Append one event."""
    events.code[n] = pack(kind, expert, slot)
    return n + 1


def load(
    cache: CacheState,
    eviction: EvictionPolicy,
    admission: Admission | None,
    group: int,
    expert: int,
    now: int,
    signal: float,
    held: int,
    kind: int,
    events: EventBuffer,
    n: int,
) -> tuple[int, bool]:
    """Load `expert` into the cache if room can be made; returns the event count and whether it was."""
    if cache.unit > 0 and cache.used[group] + cache.unit > cache.capacity[group]:
        # Full, and one victim makes room for one expert: it takes the victim's place, slot and all.
        if cache.resident_count[group] == 0:
            return n, False
        found, victim = choose_victim(cache, eviction, group, expert, now, signal)
        if not found:
            return n, False
        if admission is not None:
            admission.on_evict(victim, group, now)
        slot, position = cache.place[victim] >> SLOT, cache.position[victim]
        n = record(events, n, EVICT, victim, slot)
        cache.place[victim] = 0
        cache.place[expert] = slot << SLOT | RESIDENT
        cache.resident[position] = expert
        cache.position[expert] = position
    else:
        n, room = make_room(cache, eviction, admission, group, expert, now, signal, held, events, n)
        if not room:
            return n, False
        slot = allocate_slot(cache)
        insert(cache, expert, group, slot)
    if kind == PREFETCH:
        cache.clock[REFERENCES] += 1  # loading ahead is a reference
        if len(cache.last_use) > 0:
            cache.last_use[expert] = cache.clock[REFERENCES]
    eviction.on_insert(expert, group, now, signal)
    return record(events, n, kind, expert, slot), True


def choose_victim(
    cache: CacheState, eviction: EvictionPolicy, group: int, incoming: int, now: int, signal: float
) -> tuple[bool, int]:
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
    cache.fault[BAD_VICTIM] = 1
    return False, victim


def make_room(
    cache: CacheState,
    eviction: EvictionPolicy,
    admission: Admission | None,
    group: int,
    expert: int,
    now: int,
    signal: float,
    held: int,
    events: EventBuffer,
    n: int,
) -> tuple[int, bool]:
    """Evict until `expert` fits beside the `held` that must stay; returns the event count and whether it fits."""
    size = cache.size[expert]
    # With unequal sizes one load may need several victims: find out first whether they would be enough.
    if size > cache.capacity[group] or (cache.unit == 0 and held + size > cache.capacity[group]):
        return n, False
    while cache.used[group] + size > cache.capacity[group]:
        found, victim = choose_victim(cache, eviction, group, expert, now, signal)
        if not found:
            return n, False
        if admission is not None:
            admission.on_evict(victim, group, now)
        n = record(events, n, EVICT, victim, cache.place[victim] >> SLOT)
        evict(cache, victim, group)
    return n, True


def drop_unused(cache: CacheState, layer: int, now: int, events: EventBuffer, n: int) -> int:
    """Drop what was staged for this layer and is not demanded; its chance has passed."""
    i = 0
    while i < cache.staged_count[0]:
        expert = cache.staged[i]
        if expert // cache.experts == layer and cache.seen[expert] != now:
            n = drop(cache, expert, events, n)
        else:
            i += 1
    return n


def drop(cache: CacheState, expert: int, events: EventBuffer, n: int) -> int:
    """Give up a staged expert."""
    unstage(cache, expert)
    n = record(events, n, DROP, expert, cache.place[expert] >> SLOT)
    discard(cache, expert)
    return n


def ensure_buffer(cache: CacheState, now: int, events: EventBuffer, n: int) -> int:
    """Demand goes before prefetch: if no slot is free, the oldest staged expert that is not demanded gives way."""
    if cache.ring[FREE_COUNT] == 0:
        for i in range(cache.staged_count[0]):
            expert = cache.staged[i]
            if cache.seen[expert] != now:
                return drop(cache, expert, events, n)
    return n
