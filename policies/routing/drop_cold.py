"""Missing experts that hardly count are skipped."""

import numpy as np

from policies.fields import parameter
from policies.routing.base import RoutingPolicy
from policies.routing.choice import chosen, drop, heaviest, mass, renormalise
from tracekit.rows import UNUSED


class DropCold(RoutingPolicy):
    """Skips a missing expert whose weight is below `share` of an even split of what the token's choice weighs.

    With `renormalise` the others take over its weight, in proportion; without, the output lacks it. The `keep`
    heaviest choices stay.
    """

    name = "drop-cold"
    summary = "a missing expert whose weight is below a share of an even split is skipped"
    source = "no one paper: what engines on phones do"
    reads = "weights"

    share = parameter(0.5, low=0, high=1)
    renormalise = parameter(True)
    keep = parameter(0, low=0, high=1024)

    def rewrite(
        self,
        layer: int,
        ids: np.ndarray,
        weights: np.ndarray,
        logits: np.ndarray,
        scores: np.ndarray,
        present: np.ndarray,
    ) -> None:
        total = mass(ids, weights)
        least = self.share * total / max(chosen(ids), 1)
        altered = False
        # Those dropped before weigh nothing, and so change no place among those that stay.
        for i in range(len(ids)):
            if (
                ids[i] != UNUSED
                and present[ids[i]] == 0
                and weights[i] < least
                and (self.keep == 0 or heaviest(ids, weights, i) >= self.keep)
            ):
                drop(ids, weights, i)
                altered = True
        if altered and self.renormalise:
            renormalise(ids, weights, total)
