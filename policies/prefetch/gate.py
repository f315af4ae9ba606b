"""Speculative loading: a later layer's gate applied to this layer's input."""

import numpy as np

from policies.prefetch.base import Prefetcher


class GatePrefetch(Prefetcher):
    """Suggests the experts that the target layer's gate picks for the current hidden state."""

    name = "gate"
    summary = "speculative loading with the gate of a later layer"
    source = "Eliseev & Mazur 2023, arXiv 2312.17238, section 3.2"
    reads = "lookahead"

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        return copy_ranked(hint, out)


def copy_ranked(hint: np.ndarray, out: np.ndarray) -> int:
    """Copy the ranked keys of `hint` up to the first -1; returns how many."""
    count = 0
    while count < len(hint) and count < len(out) and hint[count] >= 0:
        out[count] = hint[count]
        count += 1
    return count
