"""A missing expert is stood in for by the nearest that is there."""

import numpy as np

from policies.fields import parameter
from policies.routing.base import RoutingPolicy
from policies.routing.choice import best_present, heaviest, least_logit, logit_range
from tracekit.rows import UNUSED


class Substitute(RoutingPolicy):
    """Replaces a missing expert by the one that is there, is not chosen yet and has the largest logit, if that is at
    most `strength` times the range of the token's logits away.

    In order of slots. The stand-in gets the weight of the one that it stands in for. The `keep` heaviest choices stay.
    An expert that the gate passed over though its logit is larger counts for no more than the least that it chose.
    """

    name = "substitute"
    summary = "a missing expert is replaced by the one that is there and has the nearest logit"
    source = "this project; compare Skliar et al. 2024, arXiv 2412.00099"
    reads = "logits"

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
        nearest = self.strength * logit_range(logits)
        ceiling = least_logit(ids, logits)
        for i in range(len(ids)):
            if ids[i] != UNUSED and present[ids[i]] == 0 and heaviest(ids, weights, i) >= self.keep:
                best = best_present(ids, logits, present)
                if best >= 0 and logits[ids[i]] - min(logits[best], ceiling) < nearest:
                    ids[i] = best
