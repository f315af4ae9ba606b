"""LRU-K: recency of the K-th last reference instead of the last."""

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import parameter, per_expert

MOST = 4


class LruK(EvictionPolicy):
    """Evicts the expert whose k-th last reference is oldest; fewer than k references count as infinitely old.

    References are remembered across evictions. Ties, and experts with fewer than k references: least recent.
    """

    name = "lru-k"
    summary = "oldest k-th last reference (k = 2)"
    source = "O'Neil, O'Neil & Weikum 1993, The LRU-K Page Replacement Algorithm (SIGMOD), section 2"

    k = parameter(2)

    history = per_expert(np.int64, 0, width=MOST)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        first = expert * MOST
        for i in range(MOST - 1, 0, -1):
            self.history[first + i] = self.history[first + i - 1]
        self.history[first] = self.last_use[expert]

    def rank(self, expert: int, group: int, now: int) -> float:
        return self.history[expert * MOST + min(max(self.k, 1), MOST) - 1]  # type: ignore[no-any-return]
