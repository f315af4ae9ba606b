"""What usually follows: counts of which experts of a later layer went with which of this layer."""

import numpy as np

from policies.fields import per_expert, per_pair
from policies.prefetch.base import Prefetcher
from policies.prefetch.memory import best, remember


class Markov(Prefetcher):
    """Suggests the experts that most often went, `distance` layers on, with those demanded here."""

    name = "markov"
    summary = "experts that went with this layer's, from counts of pairs so far"
    source = "inter-layer expert affinity: Yao et al. 2024, ExFlow, arXiv 2401.08383"
    wraps = True

    demand = per_expert(np.int32, -1)
    pairs = per_pair(np.int32)
    score = per_expert(np.int64)

    def observe(self, layer: int, demand: np.ndarray) -> None:
        # What went with the first layers is what the last ones demanded a step before, still remembered.
        source = layer - self.distance + (self.layers if layer < self.distance else 0)
        if source >= 0:
            for i in range(source * self.experts, (source + 1) * self.experts):
                key = self.demand[i]
                if key < 0:
                    break
                for j in range(len(demand)):
                    self.pairs[key * self.experts + demand[j] % self.experts] += 1
        remember(self.demand, layer, self.experts, demand)

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        base = target * self.experts
        source = (target - self.distance + (self.layers if target < self.distance else 0)) * self.experts
        for key in range(base, base + self.experts):
            self.score[key] = 0
        for i in range(source, source + self.experts):
            key = self.demand[i]
            if key < 0:
                break
            for other in range(self.experts):
                self.score[base + other] += self.pairs[key * self.experts + other]
        return best(self.score, target, self.experts, out)
