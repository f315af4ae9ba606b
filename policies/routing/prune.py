"""A model without its experts of least weight."""

import numpy as np

from policies.fields import parameter
from policies.routing.base import RoutingPolicy
from policies.routing.choice import best_left, drop, mass, renormalise
from tracekit.rows import UNUSED


class Prune(RoutingPolicy):
    """Leaves the gate of each layer the `keep` experts that weighed most in the profile: the top k of what is left.

    Weights follow from the logits as they were, and add up to what the gate's own choice did. Of a gate whose weights
    add up to one, as Mixtral's, that is the gate without the others' rows; of one whose weights do not, these rows
    would have changed the sum, too. A token that chose more experts than are left gets those that are.

    Where the gate chose by something beside its logits (a bias for balance, groups), what it chose stays where it is
    left, and the others follow by their logits.
    """

    name = "prune"
    summary = "the gate chooses among the experts of each layer that weighed most in a profile"
    source = "after Muzio et al. 2024, SEER-MoE, arXiv 2404.05089 (pruning by soft counts, without fine-tuning)"
    reads = "scores"
    looks = False
    needs_profile = True

    keep = parameter(6, low=1)

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
        place = self.place[layer * self.experts : (layer + 1) * self.experts]
        altered = False
        # What is chosen and left is among the top k of what is left: only the others' slots are to be filled.
        for i in range(len(ids)):
            if ids[i] != UNUSED and place[ids[i]] >= self.keep:
                best = best_left(ids, logits, place, self.keep)
                if best < 0:
                    drop(ids, weights, i)
                else:
                    ids[i] = best
                altered = True
        if altered:
            for i in range(len(ids)):
                if ids[i] != UNUSED:
                    weights[i] = scores[ids[i]]
            renormalise(ids, weights, total)
