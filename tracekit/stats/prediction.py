"""How well a layer's experts tell the next layer's: what a prefetcher across layers has to live on.

Counted on the first half of a trace's tokens, tested on the second. An expert of the next layer scores the sum, over
the experts chosen here, of how often they went together; the best k are the guess. The hit ratio is the share of the
experts really chosen that were guessed, and is compared with guessing the most popular k.
"""

import msgspec
import numpy as np
from numba import njit

from tracekit.arrays import F32, I64, U16, U32

_MOST_BYTES = 1 << 29
_MOST_WORK = 1 << 33  # comparisons


class CrossLayer(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the second half's choices, from the second MoE layer on, that were guessed."""

    hit_ratio: float
    popularity: float  # the same for the most popular experts
    tested_tokens: int
    hit_ratio_by_layer: list[float]
    popularity_by_layer: list[float]


class Prediction:
    """Counts so far; `add` blocks of rows in order, then read `result`."""

    def __init__(self, tokens: int, layers: int, experts: int, top_k: int) -> None:
        self.possible = layers > 1 and tokens > 1 and (layers - 1) * experts * experts * 8 <= _MOST_BYTES
        self.too_large = layers > 1 and tokens > 1 and not self.possible
        self._half = tokens // 2
        self._every = 1 + (tokens - self._half) * (layers - 1) * top_k * experts * 2 // _MOST_WORK
        shape = (layers - 1, experts, experts) if self.possible else (0, 0, 0)
        self._together = np.zeros(shape, np.uint32)
        self._load = np.zeros((layers, experts), np.int64)
        self._chance: F32 | None = None
        self._rank = np.zeros((layers, experts), np.int64)
        self._hits = np.zeros((3, max(0, layers - 1)), np.int64)  # guessed, popular, all
        self._tested = 0

    def add(self, first: int, experts: U16) -> None:
        """Count or test the rows from `first` on; experts [rows, layers, k]."""
        if not self.possible:
            return
        learned = max(0, min(len(experts), self._half - first))
        if learned:
            _learn(experts[:learned], self._together, self._load)
        if learned == len(experts):
            return
        if self._chance is None:
            self._chance = self._settle()
        skip = -(first + learned - self._half) % self._every
        chosen = experts[learned + skip :: self._every]
        _test(chosen, self._chance, self._rank, self._hits)
        self._tested += len(chosen)

    def _settle(self) -> F32:
        """What the first half taught: how likely each expert of the next layer is, given one of this."""
        per_expert = np.maximum(self._load[:-1, :, None], 1).astype(np.float32)
        chance = np.divide(self._together, per_expert, dtype=np.float32)
        # Popularity decides between experts that were never seen together.
        totals = np.maximum(self._load.sum(axis=1, keepdims=True), 1)
        chance += (1e-6 * self._load[1:] / totals[1:]).astype(np.float32)[:, None, :]
        order = np.argsort(-self._load, axis=1, kind="stable")
        np.put_along_axis(self._rank, order, np.arange(order.shape[1])[None, :], axis=1)
        return chance

    @property
    def result(self) -> CrossLayer | None:
        """None for one layer, or too little, or too much, to count."""
        guessed, popular, chosen = self._hits
        if not self.possible or not chosen.all() or not chosen.size:
            return None
        return CrossLayer(
            hit_ratio=float(guessed.sum() / chosen.sum()),
            popularity=float(popular.sum() / chosen.sum()),
            tested_tokens=self._tested,
            hit_ratio_by_layer=(guessed / chosen).tolist(),
            popularity_by_layer=(popular / chosen).tolist(),
        )


@njit(cache=True)
def _learn(experts: U16, together: U32, load: I64) -> None:
    rows, layers, k = experts.shape
    most = load.shape[1]
    for row in range(rows):
        for layer in range(layers):
            for slot in range(k):
                here = experts[row, layer, slot]
                if here >= most:
                    continue
                load[layer, here] += 1
                if layer + 1 < layers:
                    for other in range(k):
                        there = experts[row, layer + 1, other]
                        if there < most:
                            together[layer, here, there] += 1


@njit(cache=True)
def _test(experts: U16, chance: F32, rank: I64, hits: I64) -> None:
    rows, layers, k = experts.shape
    most = rank.shape[1]
    score = np.empty(most, np.float32)
    for row in range(rows):
        for layer in range(layers - 1):
            score[:] = 0
            for slot in range(k):
                here = experts[row, layer, slot]
                if here < most:
                    for expert in range(most):
                        score[expert] += chance[layer, here, expert]
            for slot in range(k):
                there = experts[row, layer + 1, slot]
                if there >= most:
                    continue
                mine, better = score[there], 0
                for expert in range(most):
                    better += score[expert] > mine
                for expert in range(there):
                    better += score[expert] == mine
                hits[0, layer] += better < k
                hits[1, layer] += rank[layer + 1, there] < k
                hits[2, layer] += 1
