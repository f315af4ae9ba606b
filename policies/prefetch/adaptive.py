"""As deep as it pays: of ranked experts, those whose rank has lately been right often enough."""

import numpy as np

from policies.fields import parameter, per_expert
from policies.prefetch.base import Prefetcher

SHIFT = 5  # each visit forgets 1/32 of what was before
ONE = 1 << 20


class AdaptiveGate(Prefetcher):
    """Suggests the gate's first ranks, down to the first one that was demanded in less than `worth` of its visits.

    Every rank is watched, suggested or not, at each layer for itself, with a memory of some 32 visits. A wrong copy
    keeps the link from the right ones, so the depth that pays follows the routing, not the plan.
    """

    name = "gate-adaptive"
    summary = "the gate's ranking, as deep as its ranks have lately been right"
    source = "this project"
    reads = "lookahead"

    worth = parameter(0.4, low=0, high=1)

    ranked = per_expert(np.int32, -1)  # what the hint said of a layer, by rank
    right = per_expert(np.int64, ONE << SHIFT)  # by layer and rank: a decayed count of visits that demanded it

    def observe(self, layer: int, demand: np.ndarray) -> None:
        base = layer * self.experts
        for place in range(base, base + self.experts):
            if self.ranked[place] < 0:
                break
            came = 0
            for i in range(len(demand)):
                if demand[i] == self.ranked[place]:
                    came = ONE
            self.right[place] += came - (self.right[place] >> SHIFT)

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        base = target * self.experts
        count = 0
        deep = True
        for i in range(self.experts):
            known = i < len(hint) and hint[i] >= 0
            self.ranked[base + i] = hint[i] if known else -1
            if not known:
                break
            deep = deep and self.right[base + i] >= self.worth * (ONE << SHIFT)
            if deep and count < len(out):
                out[count] = hint[i]
                count += 1
        return count


class AdaptiveLearned(AdaptiveGate):
    """The same on a fitted predictor's ranking: `prefetch.artefact`."""

    name = "learned-adaptive"
    summary = "a fitted predictor's ranking, as deep as its ranks have lately been right"
    reads = "predicted"
