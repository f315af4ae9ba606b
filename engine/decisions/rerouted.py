"""Altered routing, to first order: a trace as a plan's routing policy alters it, given what the plan's cache holds.

The policy is asked visit by visit, with the cache as it is by then. What later gates would have said of the altered
model nobody knows: they are taken as recorded, so all that follows is a first-order estimate. The engine, where every
gate sees what the altered layers before it made, is the closed loop (`engine.runtime.rewriting`).

What comes out is a trace; replayed without the policy it gives the decisions that were taken here.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.decisions.hints import Hints
from engine.decisions.importance import importance_of
from engine.decisions.requests import request_steps
from engine.decisions.routing_places import routing_places
from engine.decisions.run import first_cache
from engine.plan.tables import RoutingPlan
from policies.cache_spec import CacheSpec, targets_of
from policies.rerouting import Altered, Rerouter, RoutingSpec, altered
from policies.tiered_cache import AnyCache, TieredCache
from policies.visit_order import orders_of, tokens_of, weight_of
from tracekit.demand import Demand, iter_demand, step_starts
from tracekit.errors import PlanError
from tracekit.manifest import Manifest
from tracekit.notes import is_altered
from tracekit.rows import fixed
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl

FIRST_ORDER, CLOSED_LOOP = "first-order estimate", "closed loop"
"""What every result of altered routing says: of recorded gates, or of the model at work."""


class Choices(NamedTuple):
    """The choices of consecutive rows of a trace, [rows, layers, k] each: experts and weights, before and after."""

    first_row: int
    before: np.ndarray
    weights_before: np.ndarray
    after: np.ndarray
    weights_after: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Rerouted:
    """A trace with altered routing, and what became of its choices, by step."""

    trace: Trace
    steps: list[Altered]

    def altered(self, warm_up: int = 0) -> Altered:
        """What became of all choices behind the first `warm_up` steps."""
        whole = Altered()
        for one in self.steps[warm_up:]:
            whole.add(one)
        return whole


def routing_spec(plan: RoutingPlan, manifest: Manifest) -> RoutingSpec:
    """What the plan's routing policy alters by, for the model of a trace. Raises as `routing_places`."""
    per_layer = tuple(manifest.experts_per_layer)
    places = routing_places(plan, per_layer)
    return RoutingSpec(per_layer, plan.policy, plan.parameters, manifest.score_function, places)


def rerouted(
    trace: Trace,
    spec: CacheSpec,
    routing: RoutingSpec,
    *,
    compiled: bool = True,
    progress: Callable[[int], object] | None = None,
    on_choices: Callable[[Choices], object] | None = None,
) -> Rerouted:
    """`trace` as `routing` alters it, given a cache that decides by `spec`.

    `progress` is called with the number of tokens of each finished piece, `on_choices` with its choices. Raises
    PlanError where the trace lacks what the policy reads, or the cache's policies know the future, which altering
    changes; PolicyError.
    """
    cache = first_cache(spec, compiled=compiled)
    rerouter = Rerouter(routing, spec, compiled=compiled)
    _check(trace, cache, rerouter)
    starts = step_starts(trace.step)
    recorded, given = trace.experts, trace.weights
    assert given is not None
    experts, weights = recorded.copy(), given.copy()
    limits = np.array(routing.experts_per_layer)[:, None]
    hints = Hints(trace, spec, cache.prefetch_class.reads)
    weighed = cache.eviction_class.reads == "gate-weight"
    admits_by_gate = cache.admission_class.reads == "gate-share"
    restarts = frozenset(request_steps(trace).tolist()) if spec.reset else frozenset()
    steps: list[Altered] = []
    for demand in iter_demand(trace):
        known = _Known(trace, demand, starts, hints, rerouter.reads)
        last = demand.first_step + demand.steps
        for step in range(demand.first_step, last):
            if step in restarts:
                cache.restart()
                rerouter.restart()
            rows = slice(int(starts[step]), int(starts[step + 1]))
            for layer in range(spec.layers):
                there = cache.there(layer)
                new, heavy = rerouter.visit(
                    layer, there, experts[rows, layer], weights[rows, layer], known.logits(rows, layer)
                )
                experts[rows, layer], weights[rows, layer] = new, heavy
                order, recency = orders_of(new, routing.experts_per_layer[layer])
                signal = weight_of(new, weights[rows, layer], order) if weighed else ()
                if isinstance(cache, TieredCache):
                    told = importance_of(new, weights[rows, layer], order, spec.experts)
                    cache.visit(layer, order, recency, known.hint(step, layer), signal, told)
                    continue
                tokens = tokens_of(new, order) if spec.counts_tokens else ()
                gate = weight_of(new, weights[rows, layer], order) if admits_by_gate else ()
                cache.visit(layer, order, recency, known.hint(step, layer), signal, tokens, gate)
            before = recorded[rows]
            steps.append(altered(before, given[rows], experts[rows], before < limits))
        whole = slice(int(starts[demand.first_step]), int(starts[last]))
        if on_choices is not None:
            on_choices(Choices(whole.start, recorded[whole], given[whole], experts[whole], weights[whole]))
        if progress is not None:
            progress(int(demand.step_tokens.sum()))
    rows_of = _AlteredRows(trace, fixed(experts), fixed(weights))
    return Rerouted(Trace(trace.path, trace.manifest, rows_of, trace.batching), steps)


def _check(trace: Trace, cache: AnyCache, rerouter: Rerouter) -> None:
    """Raise PlanError where this cannot be estimated from what was recorded."""
    name = rerouter.spec.policy
    if is_altered(trace.manifest.notes):
        raise PlanError(
            f"{trace.path} was recorded with altered routing: it holds what the engine did, and is replayed without "
            f"routing policy {name!r}"
        )
    if not trace.has_weights:
        raise PlanError(f"{trace.path} holds no gate weights, which routing policy {name!r} reads; record it again")
    if rerouter.reads in ("logits", "scores") and "logits" not in trace.kinds:
        raise PlanError(
            f"{trace.path} holds no gate logits, which routing policy {name!r} reads: record with --logits, or measure "
            "in the engine (tracekit validate, tracekit quality)"
        )
    for kind, policy, reads in (
        ("eviction policy", cache.spec.eviction, cache.eviction_class.reads),
        ("prefetcher", cache.spec.prefetch, cache.prefetch_class.reads),
    ):
        if reads in ("next-use", "future"):
            raise PlanError(
                f"{kind} {policy!r} knows the future, which routing policy {name!r} alters as it goes: choose another, "
                'or routing.policy = "none"'
            )
        if reads.startswith("predicted"):
            raise PlanError(
                f"{kind} {policy!r} with routing policy {name!r} cannot be estimated from a recorded trace: its fitted "
                "predictor would read altered routing; measure it in the engine (tracekit validate)"
            )


class _Known:
    """What is known beside the choices at some steps: logits, and what the prefetcher is told."""

    def __init__(self, trace: Trace, demand: Demand, starts: np.ndarray, hints: Hints, reads: str) -> None:
        self._first_step, self._layers = demand.first_step, demand.layers
        self._first_row = int(starts[demand.first_step])
        last = int(starts[demand.first_step + demand.steps])
        self._logits = trace.dense_of("logits", self._first_row, last) if reads in ("logits", "scores") else None
        self._hints = hints.of(demand) if hints.count else None
        self._base = np.maximum(targets_of(hints.spec), 0) * hints.spec.experts

    def logits(self, rows: slice, layer: int) -> np.ndarray | None:
        """f16 [tokens, experts] of one visit."""
        if self._logits is None:
            return None
        return self._logits[rows.start - self._first_row : rows.stop - self._first_row, layer]

    def hint(self, step: int, layer: int) -> list[int]:
        """Ranked experts of the layer that the prefetcher looks ahead to."""
        if self._hints is None:
            return []
        keys = self._hints[(step - self._first_step) * self._layers + layer]
        found: list[int] = (keys[keys >= 0] - self._base[layer]).tolist()
        return found


class _AlteredRows:
    """The rows of a recording with other choices. What the traced engine's cache held says nothing of these."""

    def __init__(self, recorded: Trace, experts: np.ndarray, weights: np.ndarray) -> None:
        self.columns = recorded.columns
        self.kinds = recorded.kinds - {"residency"}
        self.dense = recorded.dense_of
        self._recorded, self._experts, self._weights = recorded, experts, weights

    def experts(self, first: int, last: int) -> np.ndarray:
        return self._experts[first:last]

    def weights(self, first: int, last: int) -> np.ndarray:
        return self._weights[first:last]

    def residency(self, first: int, last: int) -> None:
        return None

    def scan(self) -> "pl.LazyFrame":
        import polars as pl

        whole = self._recorded.scan().collect()
        flat = {"experts": self._experts, "weights": self._weights}
        return whole.with_columns(
            *(pl.Series(name, array.reshape(len(array), -1), dtype=whole.schema[name]) for name, array in flat.items())
        ).lazy()

    def digest(self, manifest: Manifest) -> str:
        found = hashlib.sha256(self._recorded.digest.encode())
        found.update(self._experts.astype("<u2").tobytes())
        found.update(self._weights.astype("<f2").tobytes())
        return found.hexdigest()
