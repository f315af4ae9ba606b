"""Least frequently used over the whole past: counts survive eviction."""

import numpy as np

from policies.eviction.ordered import Ordered, settle
from policies.fields import per_expert


class LfuPerfect(Ordered):
    """Evicts the expert with the fewest lookups ever; ties: least recent."""

    name = "lfu-perfect"
    summary = "least frequently used, counts survive eviction"
    source = "Breslau et al. 1999, Web Caching and Zipf-like Distributions (Perfect-LFU)"

    count = per_expert(np.int64)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] += 1
        settle(self, expert, group, now)

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] += 1

    def rank(self, expert: int, group: int, now: int) -> float:
        return self.count[expert]
