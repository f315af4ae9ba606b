"""As many experts as make up most of what the gate's choice weighs."""

import numpy as np

from policies.fields import parameter
from policies.routing.base import RoutingPolicy
from policies.routing.choice import drop, heaviest, mass, renormalise
from tracekit.rows import UNUSED


class AdaptiveK(RoutingPolicy):
    """Keeps the fewest, heaviest choices that make up `share` of what all of them weigh, whether they are there or not.

    With `renormalise` those kept take over the others' weight, in proportion.
    """

    name = "adaptive-k"
    summary = "the fewest experts that make up a share of the weights of those chosen"
    source = "after Huang et al. 2024, Harder Tasks Need More Experts, arXiv 2403.07652 (within the chosen k)"
    reads = "weights"
    looks = False

    share = parameter(0.9, low=0, high=1)
    renormalise = parameter(True)

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
        if self.share < 1.0:
            altered = False
            enough = self.share * total
            found = 0.0
            for place in range(len(ids)):
                slot = at_place(ids, weights, place)
                if slot < 0:
                    break
                found += weights[slot]
                if found >= enough:
                    # From the lightest up, so that dropping one moves no other from its place.
                    last = at_place(ids, weights, place + 1)
                    while last >= 0:
                        altered = True
                        drop(ids, weights, last)
                        last = at_place(ids, weights, place + 1)
                    break
            if altered and self.renormalise:
                renormalise(ids, weights, total)


def at_place(ids: np.ndarray, weights: np.ndarray, place: int) -> int:
    """The slot of the choice that is at `place` in descending order of weights; -1 if there are fewer."""
    for i in range(len(ids)):
        if ids[i] != UNUSED and heaviest(ids, weights, i) == place:
            return i
    return -1
