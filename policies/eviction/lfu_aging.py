"""LFU with dynamic aging: frequency, but what has left raises the bar for what stays."""

import numpy as np

from policies.eviction.ordered import Ordered, enter, leave, settle
from policies.fields import per_expert, per_group


class LfuAging(Ordered):
    """Evicts the expert with the least frequency plus age; the age is the value of the last evicted expert."""

    name = "lfu-aging"
    summary = "least frequently used with dynamic aging"
    source = "Arlitt et al. 2000, Evaluating Content Management Techniques for Web Proxy Caches (LFU-DA)"

    count = per_expert(np.int64)
    value = per_expert(np.int64)
    age = per_group(np.int64)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] = 0
        self.value[expert] = self.age[group]
        enter(self, expert, group, now)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        self.count[expert] += 1
        self.value[expert] = self.count[expert] + self.age[group]
        settle(self, expert, group, now)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        self.age[group] = self.value[expert]
        leave(self, expert, group, now)

    def rank(self, expert: int, group: int, now: int) -> float:
        return self.value[expert]
