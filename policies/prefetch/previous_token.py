"""What the target layer demanded one step ago."""

import numpy as np

from policies.fields import per_expert
from policies.prefetch.base import Prefetcher
from policies.prefetch.memory import recall, remember


class PreviousToken(Prefetcher):
    """Suggests what the target layer demanded last, in order of first reference: at the step before the target's."""

    name = "previous-token"
    summary = "the target layer's demand of the previous step"
    source = "consecutive tokens share experts: Eliseev & Mazur 2023, arXiv 2312.17238, section 3.1"
    wraps = True

    demand = per_expert(np.int32, -1)

    def observe(self, layer: int, demand: np.ndarray) -> None:
        remember(self.demand, layer, self.experts, demand)

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        return recall(self.demand, target, self.experts, out)
