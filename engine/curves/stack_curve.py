"""Hits at every cache size from one pass over a trace, for policies whose caches nest.

Under such a policy whatever a cache of n slots holds, one of n + 1 slots holds as well (Mattson, Gecsei, Slutz &
Traiger 1970, Evaluation techniques for storage hierarchies). Then each lookup has a position, the number of slots at
which it just misses, and the histogram of positions is the whole curve. Decisions mean what they mean in
`policies.decide`: a curve equals replay at every size, to the last hit, also where a visit demands more than the cache
holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.curves.belady import belady_positions, belady_stack, next_uses
from engine.curves.lru import lru_positions, lru_stack
from tracekit.demand import Demand, iter_demand
from tracekit.trace import Trace

Scope = Literal["layer", "global"]


@dataclass(frozen=True, slots=True)
class StackCurve:
    """Lookups [phases] i64, and hits [phases, slots + 1] i64 of caches with 0, 1, ... slots (of a layer, or in all).

    Phase 0 is prefill, 1 decode. Experts are of equal size, nothing is prefetched.
    """

    lookups: np.ndarray
    hits: np.ndarray


def lru_curve(trace: Trace, scope: Scope) -> StackCurve:
    """Hits of `lru` at every size: stack distances, Mattson et al. 1970, section 3."""
    stack = lru_stack(trace.layers, trace.num_experts, _groups(trace, scope))
    lookups, hits = _nothing(trace)
    for demand in iter_demand(trace):
        lookups += _lookups(demand)
        lru_positions(stack, demand, hits)
    return _summed(trace, scope, lookups, hits)


def belady_curve(trace: Trace, scope: Scope) -> StackCurve:
    """Hits of `belady` at every size: the OPT stack, Mattson et al. 1970, section 4."""
    stack = belady_stack(trace.layers, trace.num_experts, _groups(trace, scope))
    lookups, hits = _nothing(trace)
    demands = list(iter_demand(trace))
    for demand, use in zip(demands, next_uses(demands), strict=True):
        lookups += _lookups(demand)
        belady_positions(stack, demand, use, hits)
    return _summed(trace, scope, lookups, hits)


STACK_CURVES: dict[str, Callable[[Trace, Scope], StackCurve]] = {"lru": lru_curve, "belady": belady_curve}
"""The eviction policies that need one pass for all sizes."""


def _groups(trace: Trace, scope: Scope) -> int:
    return trace.layers if scope == "layer" else 1


def _nothing(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(2, np.int64), np.zeros((2, trace.layers * trace.num_experts), np.int64)


def _lookups(demand: Demand) -> np.ndarray:
    of_step = np.diff(demand.start[:: demand.layers])
    return np.bincount(demand.phase, of_step, minlength=2).astype(np.int64)


def _summed(trace: Trace, scope: Scope, lookups: np.ndarray, positions: np.ndarray) -> StackCurve:
    per_layer = trace.manifest.experts_per_layer
    most = max(per_layer) if scope == "layer" else sum(per_layer)
    hits = np.zeros((2, most + 1), np.int64)
    np.cumsum(positions[:, :most], axis=1, out=hits[:, 1:])
    return StackCurve(lookups, hits)
