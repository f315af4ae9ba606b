"""Least frequently used, counting only while the expert is in the cache."""

import numpy as np

from policies.eviction.ordered import Ordered, enter, settle
from policies.fields import per_expert


class Lfu(Ordered):
    """Evicts the expert with the fewest lookups since it was loaded; ties: least recent."""

    name = "lfu"
    summary = "least frequently used, counts start anew at each load"
    source = "Breslau et al. 1999, Web Caching and Zipf-like Distributions (In-Cache-LFU)"

    count = per_expert(np.int64)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] = 0
        enter(self, expert, group, now)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] += 1
        settle(self, expert, group, now)

    def rank(self, expert: int, group: int, now: int) -> float:
        return self.count[expert]
