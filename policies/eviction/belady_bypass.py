"""Belady with bypassing: the bound on hits for every policy, whether it keeps what it loads or not."""

from typing import Any

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import per_expert


class BeladyBypass(EvictionPolicy):
    """After each visit keeps, of what it holds and what the visit demanded, what is demanded again soonest.

    To be a bound it may do what no engine can: evict an expert that the visit itself demands, once it is used. With
    experts of equal size no policy has more hits. With unequal sizes optimal caching is NP-hard, and this is a strong
    heuristic.
    """

    name = "belady-bypass"
    summary = "farthest next use, may stream instead of keeping (bound: reads the future)"
    source = "Belady 1966 (MIN); bypassing as in Michaud 2016, Some Mathematical Facts About Optimal Cache Replacement"
    reads = "next-use"
    bound = True

    next_use = per_expert(np.float64)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal

    def victim(self, cache: Any, group: int, incoming: int, now: int, signal: float) -> int:
        farthest = -1
        first = cache.first[group]
        for position in range(first, first + cache.resident_count[group]):
            expert = cache.resident[position]
            if farthest < 0 or self.next_use[expert] > self.next_use[farthest]:
                farthest = expert
        if farthest >= 0 and self.next_use[farthest] <= signal:
            return -1
        return farthest
