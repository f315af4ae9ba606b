"""Experts that are there get a head start at the gate."""

import numpy as np

from policies.fields import parameter
from policies.routing.base import RoutingPolicy
from policies.routing.choice import best_present, heaviest, least_logit, logit_range, mass, renormalise
from tracekit.rows import UNUSED


class CachePrior(RoutingPolicy):
    """Raises the logits of experts that are there by `strength` times the range of the token's logits; the top k again.

    Weights follow from the logits as they were, and add up to what the gate's own choice did. The `keep` heaviest
    choices stay whatever is there. The paper takes the range averaged over what came before, this the token's own.

    Where the gate chose by something beside its logits (a bias for balance, groups), an expert that it passed over
    counts for no more than the least that it chose: then nothing is altered at strength 0, of any family.
    """

    name = "cache-prior"
    summary = "experts that are there are preferred at the gate, by a share of the range of its logits"
    source = "Skliar et al. 2024, Mixture of Cache-Conditional Experts, arXiv 2412.00099, section 3"
    reads = "scores"

    strength = parameter(0.1, low=0, high=1)
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
        head_start = self.strength * logit_range(logits)
        ceiling = least_logit(ids, logits)
        altered = False
        while True:
            # The top k of raised logits, an exchange at a time: the best that is there for the worst that is not, among
            # equals the last.
            worst = -1
            for i in range(len(ids)):
                if (
                    ids[i] != UNUSED
                    and present[ids[i]] == 0
                    and (worst < 0 or logits[ids[i]] <= logits[ids[worst]])
                    and heaviest(ids, weights, i) >= self.keep
                ):
                    worst = i
            if worst < 0:
                break
            best = best_present(ids, logits, present)
            if best < 0 or not min(logits[best], ceiling) + head_start > logits[ids[worst]]:
                break
            ids[worst] = best
            altered = True
        if altered:
            for i in range(len(ids)):
                if ids[i] != UNUSED:
                    weights[i] = scores[ids[i]]
            renormalise(ids, weights, total)
