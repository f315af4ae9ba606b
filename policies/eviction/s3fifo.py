"""S3-FIFO: three first-in-first-out queues that let go quickly of what is used once."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.eviction.lists import last_idle, prev, push, remove, tail
from policies.fields import parameter, per_expert, per_group

# Where an expert is. Group g's queues are the lists QUEUES * g + SMALL, MAIN and GHOST.
SMALL, MAIN, GHOST, NOWHERE = 0, 1, 2, 3
QUEUES = 3
MOST_HITS = 3  # two bits of them are counted


class S3Fifo(EvictionPolicy):
    """New experts enter a small queue; used again, they move to the main one; a ghost remembers who left the small.

    An expert that returns while the ghost remembers it enters the main queue. Queues are measured in the unit of the
    capacity, in whole units, as in the authors' simulator (libCacheSim). As there, an eviction from the small queue
    goes on until one expert leaves it for the ghost, even if the main queue overflows by what is promoted meanwhile,
    which the next eviction mends: algorithm 1 as printed evicts from a full main queue at each promotion besides, and
    so more than it needs room for. As in the paper, and unlike libCacheSim since December 2024, experts enter the
    small queue while the cache fills up, too. What the visit demands is passed over and keeps its place.
    """

    name = "s3fifo"
    summary = "small, main and ghost queues; quick demotion of one-hit experts"
    source = "Yang et al. 2023, FIFO Queues are All You Need for Cache Eviction (SOSP), section 4, algorithm 1"

    small_share = parameter(0.1, low=0, high=1)
    ghost_share = parameter(0.9, low=0, high=10)
    move_at = parameter(2, low=1, high=MOST_HITS)

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=2 * QUEUES)
    queue = per_expert(np.uint8, NOWHERE)
    hits = per_expert(np.uint8)
    small_used = per_group(np.int64)
    ghost_used = per_group(np.int64)
    ghost_limit = per_group(np.int64)
    returning = per_group(np.int32, -1)  # who the last victim made room for, and whom its ghost must not push out

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        if self.hits[expert] < MOST_HITS:
            self.hits[expert] += 1

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.hits[expert] = 0
        if self.queue[expert] == GHOST:
            leave(self, expert, group)
            enter(self, expert, group, MAIN)
        else:
            enter(self, expert, group, SMALL)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        from_small = self.queue[expert] == SMALL
        leave(self, expert, group)
        if from_small:
            enter(self, expert, group, GHOST)
            trim_ghost(self, group)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        self.ghost_limit[group] = int(self.ghost_share * cache.capacity[group])
        self.returning[group] = incoming
        if self.small_used[group] >= int(self.small_share * cache.capacity[group]):
            expert = from_small_queue(self, cache, group, now)
            if expert >= 0:
                return expert
        expert = from_main_queue(self, cache, group, now)
        if expert >= 0:
            return expert
        expert = from_small_queue(self, cache, group, now)
        # The small queue may have promoted all that it had to give.
        return expert if expert >= 0 else from_main_queue(self, cache, group, now)


def from_small_queue(state: "S3Fifo", cache: CacheState, group: int, now: int) -> int:
    """The oldest idle expert of the small queue that was hit too little; those before it are promoted. Or -1."""
    expert = tail(state.ends, QUEUES * group + SMALL)
    while expert >= 0:
        following = prev(state.links, expert)
        if cache.seen[expert] != now:
            if state.hits[expert] < state.move_at:
                return expert
            state.hits[expert] = 0
            leave(state, expert, group)
            enter(state, expert, group, MAIN)
        expert = following
    return -1


def from_main_queue(state: "S3Fifo", cache: CacheState, group: int, now: int) -> int:
    """The oldest idle expert of the main queue without hits; those before it spend one and start anew. Or -1."""
    while True:
        expert = last_idle(state.links, state.ends, QUEUES * group + MAIN, cache.seen, now)
        if expert < 0 or state.hits[expert] == 0:
            return expert
        state.hits[expert] -= 1
        leave(state, expert, group)
        enter(state, expert, group, MAIN)


def trim_ghost(state: "S3Fifo", group: int) -> None:
    """Forget the oldest ghosts. One that returns takes no room any more, and is remembered until it is in."""
    returning = state.returning[group]
    limit = state.ghost_limit[group]
    if state.queue[returning] == GHOST:
        limit += state.size[returning]
    expert = tail(state.ends, QUEUES * group + GHOST)
    while state.ghost_used[group] > limit:
        following = prev(state.links, expert)
        if expert != returning:
            leave(state, expert, group)
        expert = following


def enter(state: "S3Fifo", expert: int, group: int, queue: int) -> None:
    """Put an expert at the new end of a queue."""
    state.queue[expert] = queue
    if queue == SMALL:
        state.small_used[group] += state.size[expert]
    elif queue == GHOST:
        state.ghost_used[group] += state.size[expert]
    push(state.links, state.ends, QUEUES * group + queue, expert)


def leave(state: "S3Fifo", expert: int, group: int) -> None:
    """Take an expert out of its queue."""
    queue = state.queue[expert]
    if queue == SMALL:
        state.small_used[group] -= state.size[expert]
    elif queue == GHOST:
        state.ghost_used[group] -= state.size[expert]
    remove(state.links, state.ends, QUEUES * group + queue, expert)
    state.queue[expert] = NOWHERE
