"""What the decision kernel works on: the state of a cache, and a batch of visits."""

from typing import NamedTuple

import numpy as np

# What `place` of an expert is made of: its slot in the upper bits, these flags in the lower four; 0 is absent.
RESIDENT = 1  # in the cache until it is evicted
STAGED = 2  # in a staging buffer
PREFETCHED = 4  # loaded ahead and not demanded since
PINNED = 8  # in the cache for good: it is not RESIDENT, and in no array that policies look through
FLAGS = 15
SLOT = 4  # bits to shift

# What stands where in `clock`, `ring` and `fault`.
VISITS, REFERENCES = 0, 1
FREE_HEAD, FREE_COUNT = 0, 1  # the slot that is handed out next; how many are free
BAD_VICTIM, BAD_SUGGESTION = 0, 1

MOST_VISITS = (1 << 32) - 1  # what `seen` can tell apart


def as_key(number: int) -> int:
    """A key that a policy named, as a number of the type of all other keys (u32 where compiled).

    One type means that compiled code has one version of everything that takes a key, and unsigned indices.
    """
    return number


class CacheState(NamedTuple):
    """All that a cache knows, as arrays that `decide` changes."""

    experts: int  # experts per layer; an expert's key is layer * experts + expert
    group_of: np.ndarray  # u32 [layers]: the capacity group of a layer
    size: np.ndarray  # i64 [keys]: what an expert takes of the capacity (1 when capacity counts slots)
    unit: int  # the size of every expert if all sizes are equal, else 0
    clairvoyant: bool  # a bound decides, which may evict what the visit itself demands
    capacity: np.ndarray  # i64 [groups]: beside what is pinned
    used: np.ndarray  # i64 [groups]: of that
    place: np.ndarray  # i32 [keys]: 0 absent, else slot << SLOT with RESIDENT, STAGED or PINNED, and perhaps PREFETCHED
    seen: np.ndarray  # u32 [keys]: the last visit that demanded the expert
    last_use: np.ndarray  # i64 [keys], or empty if the policy does not read it: running number of the last reference
    first: np.ndarray  # i64 [groups + 1]: where each group's part of `resident` starts
    resident: np.ndarray  # u32: resident keys that may leave, group by group, unordered
    resident_count: np.ndarray  # i64 [groups]
    position: np.ndarray  # u32 [keys]: index in `resident`
    free: np.ndarray  # i64 [slots]: ring of free slots, first in first out
    ring: np.ndarray  # i64 [2]: FREE_HEAD and FREE_COUNT
    staged: np.ndarray  # i32 [staging]: staged keys, oldest first
    staged_count: np.ndarray  # i64 [1]
    clock: np.ndarray  # i64 [2]: VISITS and REFERENCES so far
    into_cache: bool  # prefetches go into the cache instead of staging buffers
    distance: int  # prefetches are for the layer so many ahead
    wraps: bool  # past the last layer, of the next step
    suggestion: np.ndarray  # i32 [count]: scratch for the prefetcher
    fault: np.ndarray  # i64 [2]: 1 where a policy named a BAD_VICTIM, or a prefetcher a BAD_SUGGESTION
    missing: np.ndarray  # i64 [experts]: scratch, where in the demand the visit's missing experts stand


NO_TOKENS, NO_WEIGHTS = np.empty(0, np.int32), np.empty(0, np.float64)


class Batch(NamedTuple):
    """Visits to decide, in order."""

    layer: np.ndarray  # i32 [visits]
    start: np.ndarray  # i64 [visits + 1]: a visit's part of the arrays below
    demand: np.ndarray  # u32: distinct keys in (token, slot) order of first reference
    recency: np.ndarray  # u32: the same keys in order of last reference
    signal: np.ndarray  # f64, or empty: what the eviction policy reads, per lookup in order of `demand`
    signal_recency: np.ndarray  # f64, or empty: the same in order of `recency`
    hint: np.ndarray  # i32 [visits, n]: ranked keys of the target layer, padded with -1
    tokens: np.ndarray = NO_TOKENS  # i32, or empty: how many tokens chose the expert, where that decides who computes
    gate: np.ndarray = NO_WEIGHTS  # f64, or empty: the gate weights they gave it, added up; both in order of `demand`


def allocate_slot(cache: CacheState) -> int:
    """The slot that has been free longest: consecutive bypasses rotate through all free slots."""
    head = cache.ring[FREE_HEAD]
    slot: int = cache.free[head]
    cache.ring[FREE_HEAD] = head + 1 if head + 1 < len(cache.free) else 0
    cache.ring[FREE_COUNT] -= 1
    return slot


def free_slot(cache: CacheState, slot: int) -> None:
    """The slot is free."""
    tail = cache.ring[FREE_HEAD] + cache.ring[FREE_COUNT]
    if tail >= len(cache.free):
        tail -= len(cache.free)
    cache.free[tail] = slot
    cache.ring[FREE_COUNT] += 1


def discard(cache: CacheState, expert: int) -> None:
    """The expert is gone; its slot is free."""
    free_slot(cache, cache.place[expert] >> SLOT)
    cache.place[expert] = 0


def insert(cache: CacheState, expert: int, group: int, slot: int) -> None:
    """The expert becomes resident in `slot`."""
    position = cache.first[group] + cache.resident_count[group]
    cache.resident[position] = expert
    cache.position[expert] = position
    cache.resident_count[group] += 1
    cache.used[group] += cache.size[expert]
    cache.place[expert] = slot << SLOT | RESIDENT


def evict(cache: CacheState, expert: int, group: int) -> None:
    """The expert is resident no longer; its slot is free."""
    last = cache.first[group] + cache.resident_count[group] - 1
    position = cache.position[expert]
    moved = cache.resident[last]
    cache.resident[position] = moved
    cache.position[moved] = position
    cache.resident_count[group] -= 1
    cache.used[group] -= cache.size[expert]
    discard(cache, expert)


def stage(cache: CacheState, expert: int, slot: int) -> None:
    """The expert is loaded ahead into `slot`, a staging buffer."""
    cache.place[expert] = slot << SLOT | STAGED | PREFETCHED
    cache.staged[cache.staged_count[0]] = expert
    cache.staged_count[0] += 1


def unstage(cache: CacheState, expert: int) -> None:
    """Take `expert` off the list of staged experts; its slot stays its own."""
    count = cache.staged_count[0]
    i = 0
    while cache.staged[i] != expert:
        i += 1
    while i + 1 < count:
        cache.staged[i] = cache.staged[i + 1]
        i += 1
    cache.staged_count[0] = count - 1
