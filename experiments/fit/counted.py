"""What counting alone predicts: the experts that are chosen most, and those that follow a layer's own choices."""

import numpy as np

from tracekit.arrays import F64, U16
from tracekit.shards import block_rows
from tracekit.trace import Trace

NAMES = ("popular", "markov")


class Counted:
    """Counts of a trace's choices: how often each expert is chosen, and after which experts `distance` layers before.

    `popular` ranks a layer's experts by the first, `markov` by the sum, over the experts that a token chose at the
    source layer, of the shares of their tokens that chose each expert: the guesses of the prefetchers of these names,
    counted on one trace and tested on another.
    """

    def __init__(self, trace: Trace, distance: int) -> None:
        experts, sources = trace.num_experts, trace.layers - distance
        self._distance, self._experts = distance, experts
        self._chosen = np.zeros((trace.layers, experts + 1), np.int64)
        self._after = np.zeros((sources, experts + 1, experts + 1), np.float32)
        for first in range(0, trace.tokens, rows := block_rows(trace.manifest)):
            # Unused slots count as an expert of their own, which is left out of every score.
            ids = np.minimum(trace.experts_of(first, first + rows), experts).astype(np.int64)
            for layer in range(trace.layers):
                self._chosen[layer] += np.bincount(ids[:, layer].ravel(), minlength=experts + 1)
            for layer in range(sources):
                pairs = ids[:, layer, :, None] * (experts + 1) + ids[:, layer + distance, None, :]
                counts = np.bincount(pairs.ravel(), minlength=(experts + 1) ** 2)
                self._after[layer] += counts.reshape(experts + 1, experts + 1)

    def scores(self, layer: int, chosen: U16, wide: int) -> dict[str, F64]:
        """By name, scores [tokens, wide] of the experts `distance` layers after `layer`; chosen [tokens, k] there."""
        popular = self._chosen[layer + self._distance, :wide].astype(np.float64)
        shares = self._after[layer] / np.maximum(self._chosen[layer], 1)[:, None]
        shares[self._experts] = 0
        own = np.minimum(chosen, self._experts)
        # Of experts that nothing is known of, the popular ones come first: their shares are below every other.
        least = popular / (popular.sum() + 1) * 1e-6
        return {
            "popular": np.broadcast_to(popular, (len(chosen), wide)),
            "markov": shares[own][:, :, :wide].sum(axis=1, dtype=np.float64) + least,
        }
