"""Hits at every cache size from one pass over a trace, for policies whose caches nest.

Under such a policy whatever a cache of n slots holds, one of n + 1 slots holds as well (Mattson, Gecsei, Slutz &
Traiger 1970, Evaluation techniques for storage hierarchies). Then each lookup has a position, the number of slots at
which it just misses, and the histogram of positions is the whole curve. Decisions mean what they mean in
`policies.decide`: a curve equals replay at every size, to the last hit, also where a visit demands more than the cache
holds.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numba import njit

from engine.stacks.belady import belady_positions, belady_stack, next_uses
from engine.stacks.lru import lru_positions, lru_stack
from tracekit.demand import Demand, iter_demand
from tracekit.trace import Trace

Scope = Literal["layer", "global"]


class Sharing(NamedTuple):
    """Whose the lookups of steps are: each of the tokens of a step has an even share of them.

    `step` and `who` i64 [tokens], ascending by step: a token's step, and the place of its request, below `requests`.
    `share` f64 [steps]: 1 over the tokens of each step.
    """

    step: np.ndarray
    who: np.ndarray
    share: np.ndarray
    requests: int


@dataclass(frozen=True, slots=True)
class ByRequest:
    """What requests have of a curve: `lookups` f64 [requests], `hits` f64 [requests, slots + 1]."""

    lookups: np.ndarray
    hits: np.ndarray


@dataclass(frozen=True, slots=True)
class StackCurve:
    """Lookups [phases] i64, and hits [phases, slots + 1] i64 of caches with 0, 1, ... slots (of a layer, or in all).

    Phase 0 is prefill, 1 decode. Experts are of equal size, nothing is prefetched. `by_request` where that was asked.
    """

    lookups: np.ndarray
    hits: np.ndarray
    by_request: ByRequest | None = None


def lru_curve(trace: Trace, scope: Scope, sharing: Sharing | None = None) -> StackCurve:
    """Hits of `lru` at every size: stack distances, Mattson et al. 1970, section 3."""
    stack = lru_stack(trace.layers, trace.num_experts, _groups(trace, scope))
    found = _Positions(trace, scope, sharing)
    for demand in iter_demand(trace):
        hits, rows = found.of(demand)
        lru_positions(stack, demand, hits, rows)
        found.add(demand)
    return found.curve()


def belady_curve(trace: Trace, scope: Scope, sharing: Sharing | None = None) -> StackCurve:
    """Hits of `belady` at every size: the OPT stack, Mattson et al. 1970, section 4."""
    stack = belady_stack(trace.layers, trace.num_experts, _groups(trace, scope))
    found = _Positions(trace, scope, sharing)
    demands = list(iter_demand(trace))
    for demand, use in zip(demands, next_uses(demands), strict=True):
        hits, rows = found.of(demand)
        belady_positions(stack, demand, use, hits, rows)
        found.add(demand)
    return found.curve()


class Curve(Protocol):
    """A way to a curve."""

    def __call__(self, trace: Trace, scope: Scope, sharing: Sharing | None = None) -> StackCurve: ...


STACK_CURVES: dict[str, Curve] = {"lru": lru_curve, "belady": belady_curve}
"""The eviction policies that need one pass for all sizes."""


def _groups(trace: Trace, scope: Scope) -> int:
    return trace.layers if scope == "layer" else 1


class _Positions:
    """Where the lookups of a pass were found: counted by phase, or step by step where they are shared by requests."""

    def __init__(self, trace: Trace, scope: Scope, sharing: Sharing | None) -> None:
        per_layer = trace.manifest.experts_per_layer
        self._most = max(per_layer) if scope == "layer" else sum(per_layer)
        self._width = trace.num_experts * (1 if scope == "layer" else trace.layers)
        self._lookups, self._hits = np.zeros(2, np.int64), np.zeros((2, self._width), np.int64)
        self._sharing = sharing
        self._piece = np.zeros((0, self._width), np.int32)
        if sharing is not None:
            self._shared = np.zeros((sharing.requests, self._width))
            self._asked = np.zeros(sharing.requests)

    def of(self, demand: Demand) -> tuple[np.ndarray, np.ndarray]:
        """Where to count the next piece's lookups, [rows, positions], and the row of each of its steps."""
        if self._sharing is None:
            return self._hits, demand.phase
        self._piece = np.zeros((demand.steps, self._width), np.int32)
        return self._piece, np.arange(demand.steps)

    def add(self, demand: Demand) -> None:
        """Count a finished piece."""
        of_step = np.diff(demand.start[:: demand.layers])
        self._lookups += np.bincount(demand.phase, of_step, minlength=2).astype(np.int64)
        if self._sharing is None:
            return
        for phase in (0, 1):
            self._hits[phase] += self._piece[demand.phase == phase].sum(axis=0, dtype=np.int64)
        step, who, share, _ = self._sharing
        first, last = np.searchsorted(step, (demand.first_step, demand.first_step + demand.steps))
        own, shares = who[first:last], share[step[first:last]]
        place = step[first:last] - demand.first_step
        np.add.at(self._asked, own, of_step[place] * shares)
        _share_out(self._piece, place, own, shares, self._shared)

    def curve(self) -> StackCurve:
        """Everything that was counted."""
        shared = None
        if self._sharing is not None:
            shared = ByRequest(self._asked, self._summed(self._shared))
        return StackCurve(self._lookups, self._summed(self._hits), shared)

    def _summed(self, positions: np.ndarray) -> np.ndarray:
        """Hits [.., slots + 1] from lookups by position: so many slots find what lies above."""
        hits = np.zeros((len(positions), self._most + 1), positions.dtype)
        np.cumsum(positions[:, : self._most], axis=1, out=hits[:, 1:])
        return hits


@njit(cache=True, nogil=True)
def _share_out(piece: np.ndarray, place: np.ndarray, who: np.ndarray, share: np.ndarray, shared: np.ndarray) -> None:
    """Add each token's share of its step's counts to its request's."""
    for token in range(len(place)):
        for position in range(piece.shape[1]):
            count = piece[place[token], position]
            if count:
                shared[who[token], position] += count * share[token]
