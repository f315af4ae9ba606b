"""LRU-K: recency of the K-th last reference instead of the last."""

import numpy as np

from policies.eviction.ordered import Ordered, settle
from policies.fields import parameter, per_expert

MOST = 4


class LruK(Ordered):
    """Evicts the expert whose k-th last lookup is oldest; fewer than k lookups count as infinitely old.

    Lookups are remembered across evictions, bypasses too; time is counted in visits. Ties, and experts with fewer
    than k lookups: least recent. k is at most 4. Correlated references (section 2.1.1) are not merged.
    """

    name = "lru-k"
    summary = "oldest k-th last lookup (k = 2)"
    source = "O'Neil, O'Neil & Weikum 1993, The LRU-K Page Replacement Algorithm (SIGMOD), section 2"

    k = parameter(2, low=1, high=MOST)

    history = per_expert(np.int64, 0, width=MOST)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        remember(self, expert, now)
        settle(self, expert, group, now)

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        remember(self, expert, now)

    def rank(self, expert: int, group: int, now: int) -> float:
        return self.history[expert * MOST + self.k - 1]


def remember(state: "LruK", expert: int, now: int) -> None:
    """Put a visit at the head of the expert's last ones."""
    first = expert * MOST
    for i in range(MOST - 1, 0, -1):
        state.history[first + i] = state.history[first + i - 1]
    state.history[first] = now
