"""Belady with bypassing: the bound on hits for every policy, whether it keeps what it loads or not."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.ordered import Ordered, enter, settle
from policies.fields import per_expert


class BeladyBypass(Ordered):
    """After each visit keeps, of what it holds and what the visit demanded, what is demanded again soonest.

    To be a bound it may do what no engine can: evict an expert that the visit itself demands, once it is used. With
    experts of equal size no policy has more hits. With unequal sizes optimal caching is NP-hard, and this is a strong
    heuristic.
    """

    name = "belady-bypass"
    summary = "farthest next use, may bypass instead of keeping (bound: reads the future)"
    source = "Belady 1966 (MIN); bypassing as in Michaud 2016, Some Mathematical Facts About Optimal Cache Replacement"
    reads = "next-use"
    bound = True

    next_use = per_expert(np.float64)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal
        settle(self, expert, group, now)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal
        enter(self, expert, group, now)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        """Nothing: what is demanded is in its place, and which of equals goes costs no hit."""

    def rank(self, expert: int, group: int, now: int) -> float:
        return -self.next_use[expert]

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        if self.held[group] == 0:
            return -1
        farthest = self.heap[group * self.experts]  # demanded by this visit or not
        return -1 if self.next_use[farthest] <= signal else farthest
