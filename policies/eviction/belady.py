"""Belady's MIN: the clairvoyant bound for policies that must keep what they load."""

import numpy as np

from policies.eviction.ordered import Ordered, enter, settle
from policies.fields import per_expert


class Belady(Ordered):
    """Evicts the expert that is demanded again last. Reads the future: a yardstick, not a policy.

    Optimal in hits among policies that insert every loaded expert, for experts of equal size, as long as what a visit
    demands fits. With unequal sizes optimal caching is NP-hard and this is a strong heuristic, not a bound.
    """

    name = "belady"
    summary = "farthest next use first, must keep what it loads (reads the future; no bound)"
    source = "Belady 1966, A study of replacement algorithms for a virtual-storage computer (MIN)"
    reads = "next-use"
    bound = True

    next_use = per_expert(np.float64)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal
        enter(self, expert, group, now)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        self.next_use[expert] = signal
        settle(self, expert, group, now)

    def rank(self, expert: int, group: int, now: int) -> float:
        return -self.next_use[expert]
