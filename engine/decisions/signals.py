"""Signals: what an eviction policy may know of each lookup, computed for a whole trace."""

from collections.abc import Iterator, Sequence, Set

import numpy as np
from numba import njit

from engine.decisions.foresight import ReuseEstimate
from policies.cache_spec import CacheSpec
from tracekit.demand import Demand, step_starts
from tracekit.errors import PlanError
from tracekit.rows import UNUSED
from tracekit.trace import Trace

Signal = tuple[np.ndarray, np.ndarray]
"""One f64 per lookup of a piece of demand, in order of `keys` and in order of `recency`; empty if nothing is read."""

NOTHING = np.empty(0, np.float64)


def with_signals(
    reads: str, trace: Trace, demands: Iterator[Demand], spec: CacheSpec, restarts: Set[int] = frozenset()
) -> Iterator[tuple[Demand, Signal]]:
    """Each piece of demand with the signal that a policy `reads`.

    "nothing", "next-use" (needs all pieces at once), "gate-weight" or "predicted-use" (of the `spec`'s estimator).
    At the steps `restarts`, where pieces begin, the cache starts anew: nothing is known across them.
    Raises PlanError when the trace lacks it, PolicyError when the estimator is not for this trace's model.
    """
    if reads == "nothing":
        for demand in demands:
            yield demand, (NOTHING, NOTHING)
    elif reads == "next-use":
        kept = list(demands)
        yield from zip(kept, next_use(kept, restarts), strict=True)
    elif reads == "gate-weight":
        gate = GateWeights(trace, "eviction")
        for demand in demands:
            yield demand, gate_weights(trace, demand, gate.starts)
    elif reads == "predicted-use":
        estimate = ReuseEstimate(trace, spec)
        for demand in demands:
            if demand.first_step in restarts:
                estimate.scores.forget()
            yield demand, estimate.signal(demand)
    else:
        raise PlanError(
            f"no signal {reads!r}: an eviction policy reads nothing, gate-weight, predicted-use or next-use"
        )


class GateWeights:
    """The gate weights of a trace, for a policy of this `kind`. Raises PlanError where it holds none."""

    def __init__(self, trace: Trace, kind: str) -> None:
        if not trace.has_weights:
            raise PlanError(f"{trace.path} holds no gate weights: choose an {kind} policy that does not read them")
        self.trace, self.starts = trace, step_starts(trace.step)

    def of(self, demand: Demand) -> np.ndarray:
        """Of each lookup of a piece, in order of its keys, added up over the visit's tokens: f64."""
        return gate_weights(self.trace, demand, self.starts)[0]


def next_use(demands: Sequence[Demand], restarts: Set[int] = frozenset()) -> list[Signal]:
    """The visit at which each demanded expert is demanded again, infinity if never before one of the `restarts`."""
    if not demands:
        return []
    upcoming = np.full(demands[0].layers * demands[0].experts, np.inf)
    scratch = np.empty_like(upcoming)
    signals = []
    # The future is known from the end: one pass backwards.
    for demand in reversed(demands):
        by_demand = np.empty(len(demand.keys))
        by_recency = np.empty(len(demand.keys))
        first_visit = demand.first_step * demand.layers
        _next_use(demand.keys, demand.recency, demand.start, first_visit, upcoming, scratch, by_demand, by_recency)
        signals.append((by_demand, by_recency))
        if demand.first_step in restarts:
            upcoming[:] = np.inf
    return signals[::-1]


def gate_weights(trace: Trace, demand: Demand, starts: np.ndarray) -> Signal:
    """The gate weights that a visit's tokens gave each demanded expert, added up in (token, slot) order."""
    rows = slice(int(starts[demand.first_step]), int(starts[demand.first_step + demand.steps]))
    weights = trace.weights_of(rows.start, rows.stop)
    assert weights is not None
    by_demand = np.empty(len(demand.keys))
    by_recency = np.empty(len(demand.keys))
    scratch = np.zeros(demand.layers * demand.experts)
    steps = starts[demand.first_step : demand.first_step + demand.steps + 1] - rows.start
    _gate_weights(
        trace.experts_of(rows.start, rows.stop),
        weights.astype(np.float32),
        steps,
        demand.experts,
        demand.keys,
        demand.recency,
        demand.start,
        scratch,
        by_demand,
        by_recency,
    )
    return by_demand, by_recency


@njit(cache=True, nogil=True)
def _next_use(  # type: ignore[no-untyped-def]
    keys, recency, start, first_visit, upcoming, scratch, by_demand, by_recency
):
    for visit in range(len(start) - 2, -1, -1):
        for i in range(start[visit], start[visit + 1]):
            key = keys[i]
            scratch[key] = upcoming[key]
            upcoming[key] = first_visit + visit
            by_demand[i] = scratch[key]
        for i in range(start[visit], start[visit + 1]):
            by_recency[i] = scratch[recency[i]]


@njit(cache=True, nogil=True)
def _gate_weights(  # type: ignore[no-untyped-def]
    experts, weights, steps, num_experts, keys, recency, start, scratch, by_demand, by_recency
):
    layers, k = experts.shape[1], experts.shape[2]
    for visit in range(len(start) - 1):
        step, layer = visit // layers, visit % layers
        for i in range(start[visit], start[visit + 1]):
            scratch[keys[i]] = 0.0
        for row in range(steps[step], steps[step + 1]):
            for slot in range(k):
                expert = experts[row, layer, slot]
                if expert != UNUSED:
                    scratch[layer * num_experts + expert] += weights[row, layer, slot]
        for i in range(start[visit], start[visit + 1]):
            by_demand[i] = scratch[keys[i]]
            by_recency[i] = scratch[recency[i]]
