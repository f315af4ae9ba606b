"""Recall of recorded speculation: how much of a layer's choice is among the best m that an earlier layer's state named.

Eliseev & Mazur 2023 (arXiv 2312.17238), section 3.2: the gate of a later layer on the hidden state of an earlier one.
"""

import msgspec
import numpy as np
from numba import njit

from tracekit.arrays import F32, I64, U16
from tracekit.trace import Trace

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MOST_WORK = 1 << 32  # comparisons
_BLOCK_BYTES = 32 << 20


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """Of one distance: the share of chosen experts among the best m, by m."""

    distance: int
    tokens: int
    recall: dict[int, float]


def recalls(trace: Trace) -> list[Recall]:
    """Recall at m of every distance that the trace recorded; long traces are sampled at regular steps."""
    found = [_recall(trace, distance) for distance in trace.lookahead_distances]
    return [recall for recall in found if recall is not None]


def _recall(trace: Trace, distance: int) -> Recall | None:
    ranks = np.zeros(trace.num_experts, np.int64)
    depth = trace.layers - distance
    every = 1 + trace.tokens * depth * trace.top_k * trace.num_experts // _MOST_WORK
    tokens = 0
    rows = max(1, _BLOCK_BYTES // (depth * trace.num_experts * 4))
    for first in range(0, trace.tokens, rows):
        speculated = trace.dense_of(f"lookahead-{distance}", first, first + rows)
        if speculated is None:
            return None
        skip = -first % every
        chosen = trace.experts_of(first, first + rows)[skip::every, distance:]
        _rank(speculated[skip::every].astype(np.float32), np.ascontiguousarray(chosen), ranks)
        tokens += len(chosen)
    total = int(ranks.sum())
    if not total:
        return None
    counts = [count for count in _COUNTS if count <= trace.num_experts]
    return Recall(
        distance=distance,
        tokens=tokens,
        recall={count: float(ranks[:count].sum() / total) for count in counts},
    )


@njit(cache=True)
def _rank(speculated: F32, chosen: U16, ranks: I64) -> None:
    """Count the place of every chosen expert in the order of its speculated score, ties by number."""
    rows, layers, most = speculated.shape
    for row in range(rows):
        for layer in range(layers):
            score = speculated[row, layer]
            for slot in range(chosen.shape[2]):
                expert = chosen[row, layer, slot]
                if expert >= most:
                    continue
                mine, better = score[expert], 0
                for other in range(most):
                    better += score[other] > mine
                for other in range(expert):
                    better += score[other] == mine
                ranks[better] += 1
