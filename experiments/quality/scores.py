"""Scores of predictions: how many nats the tokens took, and how far two models' predictions are apart.

Everything is computed in float64 and summed exactly, a bounded piece of the logits at a time, so that neither order nor
pieces change a bit of the result.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracekit.errors import ModelError

PIECE_BYTES = 16 << 20
"""Of log-probabilities in float64 at a time, for each of two models."""


class Score:
    """What the tokens of a document took; `kl_nats` and `agreed` only where there is a model to compare with."""

    def __init__(self) -> None:
        self._nats: list[float] = []
        self._divergence: list[float] = []
        self.agreed = 0

    @property
    def tokens(self) -> int:
        """Tokens predicted."""
        return len(self._nats)

    @property
    def nats(self) -> float:
        """-log p of all tokens."""
        return math.fsum(self._nats)

    @property
    def kl_nats(self) -> float:
        """Kullback-Leibler divergence of the model's predictions from the other's, summed over tokens."""
        return math.fsum(self._divergence)

    def add(self, logits: Tensor, targets: NDArray[np.int64], other: Tensor | None = None) -> None:
        """The logits [n, vocabulary] of the tokens `targets` [n]; `other` [n, vocabulary] are the other model's.

        Raises ModelError where a token has no finite probability.
        """
        wanted = torch.from_numpy(targets)
        for part in _pieces(logits):
            predicted = torch.log_softmax(logits[part].double(), -1)
            taken = -predicted.gather(-1, wanted[part, None].to(predicted.device))[:, 0]
            if not bool(torch.isfinite(taken).all()):
                raise ModelError("the model's logits are not finite: its weights are damaged, or its dtype overflows")
            self._nats += taken.tolist()
            if other is not None:
                known = torch.log_softmax(other[part].to(predicted.device).double(), -1)
                apart = known.exp() * (known - predicted)
                # What the other model rules out weighs nothing.
                self._divergence += torch.where(known == -math.inf, 0.0, apart).sum(-1).tolist()
                self.agreed += int((predicted.argmax(-1) == known.argmax(-1)).sum())


def _pieces(logits: Tensor) -> Iterator[slice]:
    rows = max(1, PIECE_BYTES // (8 * logits.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
