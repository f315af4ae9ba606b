"""Decisions where experts have two copies: visit by visit, since which copy serves depends on what is there."""

from dataclasses import replace

import numpy as np

from engine.decisions.importance import importances
from policies.events import Events
from policies.tiered_cache import Importance, TieredCache
from tracekit.demand import Demand, step_starts
from tracekit.errors import PlanError
from tracekit.trace import Trace


class TieredTrace:
    """A trace whose demand is decided by a `TieredCache`. Raises PlanError where it lacks what the rule reads."""

    def __init__(self, trace: Trace, cache: TieredCache) -> None:
        self._trace, self._cache = trace, cache
        self._weighed = cache.rule_class.reads == "gate-weight"
        if self._weighed and not trace.has_weights:
            raise PlanError(
                f"{trace.path} holds no gate weights, which precision.rule {cache.rule_class.name!r} reads: record "
                "them, or choose a rule that does not"
            )
        self._starts = step_starts(trace.step)

    def decide(self, demand: Demand, signal: np.ndarray, hint: np.ndarray) -> tuple[Demand, Events]:
        """Decide a piece. Returns its demand of copies, and the decisions.

        `signal` f64 is per lookup in order of `demand.keys`, or empty; `hint` i32 [visits, n] ranked keys, -1 for none.
        """
        experts = demand.experts
        importance = self._importance(demand) if self._weighed else None
        ids, recency = (demand.keys % experts).tolist(), (demand.recency % experts).tolist()
        ranked = np.where(hint >= 0, hint % experts, -1).tolist()
        signals = signal.tolist()
        layers, edges = demand.layer.tolist(), demand.start.tolist()
        pieces: list[Events] = []
        lows: list[bool] = []
        for visit, layer in enumerate(layers):
            part = slice(edges[visit], edges[visit + 1])
            told = None if importance is None else Importance(importance[0][part], importance[1][part])
            ahead = [expert for expert in ranked[visit] if expert >= 0]
            events, chosen = self._cache.visit(layer, ids[part], recency[part], ahead, signals[part], told)
            pieces.append(events)
            lows += chosen
        return of_copies(demand, np.array(lows, bool), self._cache.low_base), Events.join(pieces)

    def _importance(self, demand: Demand) -> tuple[list[float], list[int]]:
        first, last = demand.first_step, demand.first_step + demand.steps
        rows = slice(int(self._starts[first]), int(self._starts[last]))
        weights = self._trace.weights_of(rows.start, rows.stop)
        assert weights is not None
        steps = self._starts[first : last + 1] - rows.start
        experts = self._trace.experts_of(rows.start, rows.stop)
        share, rank = importances(experts, weights, steps, demand.experts, demand.keys, demand.start)
        return share.tolist(), rank.tolist()


def of_copies(demand: Demand, lows: np.ndarray, low_base: int) -> Demand:
    """The demand with the keys of low copies where `lows` bool [lookups] says that these serve."""
    keys = demand.keys + lows.astype(np.uint32) * np.uint32(low_base)
    if demand.recency is demand.keys:
        return replace(demand, keys=keys, recency=keys)
    visit = np.repeat(np.arange(demand.visits), np.diff(demand.start))
    # The same experts in another order, visit by visit: both sorted by visit and expert say which is which.
    recency = demand.recency.copy()
    recency[np.lexsort((demand.recency, visit))] = keys[np.lexsort((demand.keys, visit))]
    return replace(demand, keys=keys, recency=recency)
