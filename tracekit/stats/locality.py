"""One pass over the routing: load, demand per visit, overlap of neighbours, reuse distances, working sets.

Overlap, reuse distances and working sets are those of the decode tokens in the order of the rows (of all tokens where
none is a decode token).

Reuse distance: the distinct experts of the layer that the tokens between two uses of an expert chose; 0 when it was
used by the token before. LRU with that many slots or fewer per layer, token by token, has evicted it (Mattson et al.
1970, "Evaluation techniques for storage hierarchies").

Working set: the distinct experts of a layer in windows of so many consecutive tokens (Denning 1968).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from tracekit.arrays import F64, I32, I64, U16, Bools
from tracekit.rows import UNUSED
from tracekit.stats.order import Order

WINDOWS = (1, 4, 16, 64, 256)


class _Reuses(NamedTuple):
    """What is known of reuses so far."""

    used: I32  # [layers, experts], the token of the stream that last chose an expert; -1: none
    distances: I64  # [layers, experts], reuses by distance
    first_uses: I64  # [layers]
    windows: I64  # [windows], their lengths
    fresh: I64  # [windows, layers], experts new to their window


class Locality:
    """Counts so far; `add` blocks of rows in order, then read."""

    def __init__(self, order: Order, layers: int, experts: int, top_k: int) -> None:
        self._order = order
        self._stream = order.decode if order.decode.any() else np.ones(len(order.decode), np.bool_)
        self.stream_tokens = int(self._stream.sum())
        self.load = np.zeros((2, layers, experts), np.int64)  # of prefill and decode tokens
        self.distinct = np.zeros(2, np.int64)  # over visits of prefill and of decode steps
        self.overlaps = np.zeros(5)  # sums over pairs of tokens: kept, used, and their three products
        self.distances = np.zeros((layers, experts), np.int64)  # reuses by distance
        self.first_uses = np.zeros(layers, np.int64)
        used, fresh = np.full((layers, experts), -1, np.int32), np.zeros((len(WINDOWS), layers), np.int64)
        self._reuses = _Reuses(used, self.distances, self.first_uses, np.array(WINDOWS), fresh)
        self._before = np.empty((order.slots, layers, top_k), np.uint16)
        self._owner = np.full(order.slots, -1, np.int64)
        self._visited = np.full((layers, experts), -1, np.int32)  # step that last chose an expert
        self._seen = 0  # tokens of the stream so far

    def add(self, first: int, experts: U16) -> None:
        """Count the rows from `first` on; experts [rows, layers, k]."""
        rows = slice(first, first + len(experts))
        order = self._order
        _load(experts, order.decode[rows], order.step[rows], order.whole[rows], self.load, self.distinct, self._visited)
        _overlap(experts, order.slot[rows], order.request[rows], self._before, self._owner, self.overlaps)
        windows = self._reuses.windows
        whole = self.stream_tokens // windows * windows  # tokens inside complete windows
        self._seen = _reuse(experts, self._stream[rows], self._seen, whole, self._reuses)

    @property
    def overlap(self) -> tuple[float | None, float]:
        """The share of its experts that a token has from the one before, and that figure's standard error."""
        kept, used, kept_kept, kept_used, used_used = self.overlaps.tolist()
        if not used:
            return None, 0.0
        share = kept / used
        residual = kept_kept - 2 * share * kept_used + share**2 * used_used  # of a ratio estimate
        return share, float(np.sqrt(max(0.0, residual)) / used)

    @property
    def working_sets(self) -> dict[int, F64]:
        """Mean distinct experts per layer by window size; only windows of which there is a complete one."""
        return {
            window: self._reuses.fresh[index] / (self.stream_tokens // window)
            for index, window in enumerate(WINDOWS)
            if self.stream_tokens >= window
        }


def quantile(counts: I64, share: float) -> int | None:
    """The least value that at least `share` of the counted are at or below; counts [values]. None for no counts."""
    total = int(counts.sum())
    return int(np.searchsorted(np.cumsum(counts), share * total)) if total else None


@njit(cache=True)
def _load(experts: U16, decode: Bools, step: I32, whole: Bools, load: I64, distinct: I64, visited: I32) -> None:
    rows, layers, k = experts.shape
    most = load.shape[2]
    for row in range(rows):
        kind = 1 if decode[row] else 0
        visit = 1 if whole[row] else 0
        for layer in range(layers):
            for slot in range(k):
                expert = experts[row, layer, slot]
                if expert < most:
                    load[kind, layer, expert] += 1
                    if visited[layer, expert] != step[row]:
                        visited[layer, expert] = step[row]
                        distinct[visit] += 1


@njit(cache=True)
def _overlap(experts: U16, slots: I32, request: I32, before: U16, owner: I64, sums: F64) -> None:
    rows, layers, k = experts.shape
    for row in range(rows):
        place = slots[row]
        if place < 0:
            continue
        if owner[place] == request[row]:
            kept, used = 0, 0
            for layer in range(layers):
                for slot in range(k):
                    expert = experts[row, layer, slot]
                    if expert != UNUSED:
                        used += 1
                        for other in range(k):
                            if before[place, layer, other] == expert:
                                kept += 1
                                break
            sums[0] += kept
            sums[1] += used
            sums[2] += kept * kept
            sums[3] += kept * used
            sums[4] += used * used
        owner[place] = request[row]
        before[place] = experts[row]


@njit(cache=True)
def _reuse(experts: U16, stream: Bools, token: int, whole: I64, reuses: _Reuses) -> int:
    rows, layers, k = experts.shape
    most = reuses.used.shape[1]
    for row in range(rows):
        if not stream[row]:
            continue
        for layer in range(layers):
            last = reuses.used[layer]
            for slot in range(k):
                expert = experts[row, layer, slot]
                if expert >= most:
                    continue
                since = last[expert]
                if since < 0:
                    reuses.first_uses[layer] += 1
                elif since < token - 1:
                    distance = 0
                    for other in range(most):
                        distance += last[other] > since
                    reuses.distances[layer, distance] += 1
                else:
                    reuses.distances[layer, 0] += 1
                for index in range(len(reuses.windows)):
                    if token < whole[index] and since < token // reuses.windows[index] * reuses.windows[index]:
                        reuses.fresh[index, layer] += 1
            for slot in range(k):
                if experts[row, layer, slot] < most:
                    last[experts[row, layer, slot]] = token
        token += 1
    return token
