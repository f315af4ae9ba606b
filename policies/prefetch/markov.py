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
                pairs = self.pairs[key * self.experts : (key + 1) * self.experts]
                for j in range(len(demand)):
                    pairs[demand[j] - layer * self.experts] += 1
        remember(self.demand, layer, self.experts, demand)

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        base = target * self.experts
        source = (target - self.distance + (self.layers if target < self.distance else 0)) * self.experts
        score = self.score[base : base + self.experts]
        score[:] = 0
        for i in range(source, source + self.experts):
            key = self.demand[i]
            if key < 0:
                break
            # Of parts of their own, lest compiled code ask at each expert where in the whole it lies.
            pairs = self.pairs[key * self.experts : (key + 1) * self.experts]
            for other in range(len(score)):
                score[other] += pairs[other]
        return best(self.score, target, self.experts, out)
