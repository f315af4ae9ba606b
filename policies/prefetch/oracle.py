"""The prefetching bound: what the target layer will really demand."""

import numpy as np

from policies.prefetch.base import Prefetcher
from policies.prefetch.gate import copy_ranked


class OraclePrefetch(Prefetcher):
    """Suggests the true demand of the target layer, in order of first reference. Reads the future: a bound."""

    name = "oracle"
    summary = "the true demand of a later layer (bound: reads the future)"
    reads = "future"
    bound = True
    wraps = True

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        return copy_ranked(hint, out)
