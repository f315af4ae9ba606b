"""What the decision kernel works on: the state of a cache, and a batch of visits."""

from collections import namedtuple

# What `place` of an expert is made of: its slot in the upper bits, these flags in the lower four; 0 is absent.
RESIDENT = 1  # in the cache
STAGED = 2  # in a staging buffer
PREFETCHED = 4  # loaded ahead and not demanded since
PINNED = 8  # may never be evicted
FLAGS = 15
SLOT = 4  # bits to shift

MOST_VISITS = (1 << 32) - 1  # what `seen` can tell apart


def as_key(number: int) -> int:
    """A key that a policy named, as a number of the type of all other keys (u32 where compiled).

    One type means that compiled code has one version of everything that takes a key, and unsigned indices.
    """
    return number


CacheState = namedtuple(
    "CacheState",
    [
        "experts",  # int: experts per layer; an expert's key is layer * experts + expert
        "group_of",  # u32 [layers]: the capacity group of a layer
        "size",  # i64 [keys]: what an expert takes of the capacity (1 when capacity counts slots)
        "unit",  # int: the size of every expert if all sizes are equal, else 0
        "clairvoyant",  # bool: a bound decides, which may evict what the visit itself demands
        "capacity",  # i64 [groups]
        "used",  # i64 [groups]
        "place",  # i32 [keys]: 0 absent, else slot << SLOT with RESIDENT or STAGED, with PREFETCHED and PINNED
        "seen",  # u32 [keys]: the last visit that demanded the expert
        "last_use",  # i64 [keys], or empty if the policy does not read it: running number of the last reference
        "first",  # i64 [groups + 1]: where each group's part of `resident` starts
        "resident",  # u32: resident keys, group by group, unordered
        "resident_count",  # i64 [groups]
        "position",  # u32 [keys]: index in `resident`
        "free",  # i64 [slots]: ring of free slots, first in first out
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
