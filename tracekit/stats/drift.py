"""Domain shift: whether what is chosen changes along a trace more than chance would have it.

A trace is cut into parts: its requests (grouped where there are very many) or, of a trace of one request, stretches of
equal length. Loads are compared by the Jensen-Shannon divergence (Lin 1991), in bits per layer: 0 is alike, 1 disjoint.

    halves     the first half of the parts against the second. Chance: the parts dealt out to the halves at random.
    parts      the mean over parts of one part against all. Chance: parts of the same sizes drawn from the common load.
               Tokens of a request resemble each other, so this is above chance in almost every recording.
"""

import msgspec
import numpy as np
from numba import njit

from tracekit.arrays import F64, I32, I64, U16

_PARTS = 128  # most parts
_STRETCHES = 16  # parts of a trace of one request
_SHUFFLES = 200
_DRAWS = 4


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """Divergences in bits, means over layers, with what chance would give."""

    parts_are: str  # "requests", "groups of requests" or "stretches of one request"
    parts: int
    halves: float
    halves_by_chance: float
    halves_by_chance_p95: float
    shuffles_as_far: float  # the share of shuffles whose halves differ at least as much
    part: float
    part_by_chance: float


class Drift:
    """Loads of each part so far; `add` blocks of rows in order, then read `result`."""

    def __init__(self, request: I32, requests: int, layers: int, experts: int) -> None:
        self._rows = len(request)
        self._request = request
        self._part_of: I32 | None = None
        if requests > 1:
            self.parts = min(requests, _PARTS)
            self.parts_are = "requests" if requests <= _PARTS else "groups of requests"
            self._part_of = (np.arange(requests) * self.parts // requests).astype(np.int32)
        else:
            self.parts = min(_STRETCHES, len(request))
            self.parts_are = "stretches of one request"
        self.load = np.zeros((self.parts, layers, experts), np.int64)

    def add(self, first: int, experts: U16) -> None:
        """Count the rows from `first` on; experts [rows, layers, k]."""
        rows = np.arange(first, first + len(experts))
        part = rows * self.parts // self._rows if self._part_of is None else self._part_of[self._request[rows]]
        _count(experts, part.astype(np.int32), self.load)

    def result(self) -> Shift | None:
        """None where there are not two parts to compare."""
        if self.parts < 2:
            return None
        rng = np.random.default_rng(0)  # the same figures for the same trace
        total = self.load.sum(axis=0)
        half = self.parts // 2
        halves = divergence(self.load[:half].sum(axis=0), self.load[half:].sum(axis=0))
        shuffled = np.empty(_SHUFFLES)
        for number in range(_SHUFFLES):
            some = self.load[rng.permutation(self.parts)[:half]].sum(axis=0)
            shuffled[number] = divergence(some, total - some)
        drawn = [self._mean_divergence(self._redrawn(rng, total), total) for _ in range(_DRAWS)]
        return Shift(
            parts_are=self.parts_are,
            parts=self.parts,
            halves=halves,
            halves_by_chance=float(shuffled.mean()),
            halves_by_chance_p95=float(np.quantile(shuffled, 0.95)),
            shuffles_as_far=float((shuffled >= halves * (1 - 1e-12)).mean()),
            part=self._mean_divergence(self.load, total),
            part_by_chance=float(np.mean(drawn)),
        )

    def _redrawn(self, rng: np.random.Generator, total: I64) -> I64:
        sizes = self.load.sum(axis=2)
        drawn = np.zeros_like(self.load)
        for layer in range(total.shape[0]):
            if total[layer].sum():
                drawn[:, layer] = rng.multinomial(sizes[:, layer], total[layer] / total[layer].sum())
        return drawn

    @staticmethod
    def _mean_divergence(load: I64, total: I64) -> float:
        return float(np.mean([divergence(part, total) for part in load]))


def divergence(one: I64, other: I64) -> float:
    """Jensen-Shannon divergence of two loads [layers, experts], in bits, mean over the layers that both have."""
    sums = one.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    both = (sums[0] > 0).ravel() & (sums[1] > 0).ravel()
    if not both.any():
        return 0.0
    p, q = one[both] / sums[0][both], other[both] / sums[1][both]
    middle = (p + q) / 2
    return float(np.mean(_entropy(middle) - (_entropy(p) + _entropy(q)) / 2))


def _entropy(share: F64) -> F64:
    found: F64 = -(share * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
    return found


@njit(cache=True)
def _count(experts: U16, part: I32, load: I64) -> None:
    rows, layers, k = experts.shape
    most = load.shape[2]
    for row in range(rows):
        for layer in range(layers):
            for slot in range(k):
                expert = experts[row, layer, slot]
                if expert < most:
                    load[part[row], layer, expert] += 1
