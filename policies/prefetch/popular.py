"""What the target layer has demanded most often so far."""

import numpy as np

from policies.fields import per_expert
from policies.prefetch.base import Prefetcher
from policies.prefetch.memory import best


class Popular(Prefetcher):
    """Suggests the target layer's most demanded experts of all steps so far."""

    name = "popular"
    summary = "the target layer's most demanded experts so far"
    wraps = True

    count = per_expert(np.int64)
    score = per_expert(np.int64)

    def observe(self, layer: int, demand: np.ndarray) -> None:
        for i in range(len(demand)):
            self.count[demand[i]] += 1

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        base = target * self.experts
        for key in range(base, base + self.experts):
            self.score[key] = self.count[key]
        return best(self.score, target, self.experts, out)
