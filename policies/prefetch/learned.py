"""What a fitted predictor expects: its artefact is part of the plan."""

import numpy as np

from policies.fields import parameter
from policies.prefetch.base import Prefetcher
from policies.prefetch.gate import copy_ranked


class LearnedPrefetch(Prefetcher):
    """Suggests the experts that the plan's `prefetch.artefact` ranks first.

    `least` is the smallest probability, as the predictor believes it, of an expert worth suggesting.
    """

    name = "learned"
    summary = "what a fitted predictor expects (tracekit fit)"
    source = "compare Song et al. 2024, ProMoE, arXiv 2410.22134; MoE-Beyond 2025, arXiv 2508.17137"
    reads = "predicted"

    least = parameter(0.0, low=0, high=1)

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        return copy_ranked(hint, out)
