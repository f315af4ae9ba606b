"""SIEVE: a hand that sieves out, from old to new, what was not hit since it last passed."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.fifo import Fifo
from policies.eviction.lists import prev, push, remove, tail
from policies.fields import per_expert, per_group


class Sieve(Fifo):
    """First in, first out with lazy promotion: unlike CLOCK, an expert that survives keeps its place.

    The hand also passes over what the visit demands, which keeps its mark.
    """

    name = "sieve"
    summary = "lazy promotion by a hand that leaves survivors in place"
    source = "Zhang et al. 2024, SIEVE is Simpler than LRU (NSDI), section 3, algorithm 1"

    visited = per_expert(np.uint8)
    hand = per_group(np.int32, -1)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.visited[expert] = 1

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.visited[expert] = 0
        push(self.links, self.ends, group, expert)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        if self.hand[group] == expert:
            self.hand[group] = prev(self.links, expert)
        remove(self.links, self.ends, group, expert)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        # Two rounds: the first may find only marks to clear.
        expert = self.hand[group]
        for _ in range(2 * cache.resident_count[group]):
            if expert < 0:
                expert = tail(self.ends, group)
            if cache.seen[expert] != now:
                if self.visited[expert] == 0:
                    self.hand[group] = expert
                    return expert
                self.visited[expert] = 0
            expert = prev(self.links, expert)
        return -1
