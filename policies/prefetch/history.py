"""The past step whose route so far is most like this one's."""

import numpy as np

from policies.fields import per_expert, scalar
from policies.prefetch.base import Prefetcher

STEPS = 64


class History(Prefetcher):
    """Remembers the last 64 steps' routes; suggests what the most similar one demanded at the target layer, or, for a
    layer of the next step, what the step after it demanded.

    Similarity is the number of experts that both demanded at the layers this step has seen. MoE-Infinity matches the
    activation counts of whole sequences; a policy here sees steps, not requests, so it matches steps.
    """

    name = "history"
    summary = "the route of the most similar of the last 64 steps"
    source = "after Xue et al. 2024, MoE-Infinity, arXiv 2401.14361 (activation matrices, matched per sequence there)"
    wraps = True

    routes = per_expert(np.uint64)  # bit i of an expert: step i of the memory demanded it
    similarity = scalar(np.int64, 0, width=STEPS)
    steps = scalar(np.int64)
    reached = scalar(np.int64)  # the layer observed last

    def observe(self, layer: int, demand: np.ndarray) -> None:
        self.reached[0] = layer
        if layer == 0:
            self.steps[0] += 1
            for i in range(STEPS):
                self.similarity[i] = 0
        # The current step overwrites the oldest, layer by layer.
        place = self.steps[0] % STEPS
        mine = np.uint64(1) << np.uint64(place)
        base = layer * self.experts
        for key in range(base, base + self.experts):
            self.routes[key] &= ~mine
        for i in range(len(demand)):
            others = self.routes[demand[i]]
            for step in range(STEPS):
                if (others >> np.uint64(step)) & np.uint64(1):
                    self.similarity[step] += 1
            self.routes[demand[i]] |= mine

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        place = self.steps[0] % STEPS
        nearest = -1
        for back in range(1, STEPS):
            step = (place - back) % STEPS
            if self.similarity[step] > 0 and (nearest < 0 or self.similarity[step] > self.similarity[nearest]):
                nearest = step
        if nearest < 0:
            return 0
        if target <= self.reached[0]:
            nearest = (nearest + 1) % STEPS
        count = 0
        base = target * self.experts
        for key in range(base, base + self.experts):
            if count < len(out) and (self.routes[key] >> np.uint64(nearest)) & np.uint64(1):
                out[count] = key
                count += 1
        return count
