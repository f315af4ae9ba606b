"""S3-FIFO: three first-in-first-out queues that let go quickly of what is used once."""

from typing import Any

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.eviction.lists import newer, oldest, push, remove
from policies.fields import parameter, per_expert, per_group

SMALL, MAIN = 0, 1


class S3Fifo(EvictionPolicy):
    """New experts enter a small queue; used again, they move to the main one; a ghost remembers who left the small.

    An expert that returns while the ghost remembers it enters the main queue. The ghost holds as many names as have
    left the small queue during the last `ghost` x capacity departures.
    """

    name = "s3fifo"
    summary = "small, main and ghost queues; quick demotion of one-hit experts"
    source = "Yang et al. 2023, FIFO Queues are All You Need for Cache Eviction (SOSP), section 4, algorithm 1"

    small_share = parameter(0.1)
    ghost_share = parameter(0.9)
    move_at = parameter(2)

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=4)
    queue = per_expert(np.uint8)
    hits = per_expert(np.uint8)
    small_used = per_group(np.int64)
    departures = per_group(np.int64)
    left_at = per_expert(np.int64, -1)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        if self.hits[expert] < 3:
            self.hits[expert] += 1

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.hits[expert] = 0
        remembered = self.left_at[expert] >= 0
        self.left_at[expert] = -1
        enter(self, expert, group, MAIN if remembered else SMALL)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        if self.queue[expert] == SMALL:
            self.left_at[expert] = self.departures[group]
            self.departures[group] += 1
        leave(self, expert, group)

    def victim(self, cache: Any, group: int, incoming: int, now: int, signal: float) -> int:
        ghost = int(self.ghost_share * cache.capacity[group] / self.size[incoming])
        if self.left_at[incoming] >= 0 and self.departures[group] - self.left_at[incoming] > ghost:
            self.left_at[incoming] = -1
        limit = self.small_share * cache.capacity[group]
        # Each round demotes, promotes or spends a hit; an expert is passed over at most five times.
        for _ in range(5 * cache.resident_count[group] + 1):
            small_first = self.small_used[group] > limit
            expert = candidate(self, cache, group, SMALL if small_first else MAIN, now)
            if expert < 0:
                expert = candidate(self, cache, group, MAIN if small_first else SMALL, now)
            if expert < 0:
                return -1
            if self.queue[expert] == SMALL:
                if self.hits[expert] < self.move_at:
                    return expert
                self.hits[expert] = 0
            elif self.hits[expert] == 0:
                return expert
            else:
                self.hits[expert] -= 1
            leave(self, expert, group)
            enter(self, expert, group, MAIN)
        return -1


def candidate(state: Any, cache: Any, group: int, queue: int, now: int) -> int:
    """The oldest expert of a queue that this visit does not demand, or -1."""
    expert = oldest(state.ends, 2 * group + queue)
    while expert >= 0 and cache.seen[expert] == now:
        expert = newer(state.links, expert)
    return expert


def enter(state: Any, expert: int, group: int, queue: int) -> None:
    """Put an expert at the new end of a queue."""
    state.queue[expert] = queue
    if queue == SMALL:
        state.small_used[group] += state.size[expert]
    push(state.links, state.ends, 2 * group + queue, expert)


def leave(state: Any, expert: int, group: int) -> None:
    """Take an expert out of its queue."""
    if state.queue[expert] == SMALL:
        state.small_used[group] -= state.size[expert]
    remove(state.links, state.ends, 2 * group + state.queue[expert], expert)
