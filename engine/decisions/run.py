"""Decisions of a plan on a trace: what the policies know, chunk by chunk, and what they decide."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numba import njit

from engine.decisions.foresight import Foresight
from engine.decisions.signals import with_signals
from engine.plan.plan import Plan
from policies.cache import CacheSpec, ExpertCache
from policies.cache_state import Batch
from policies.events import Events
from policies.ranking import rank_lookahead
from policies.registry import eviction_policy, prefetcher
from tracekit import Trace
from tracekit.demand import CHUNK, Demand, iter_demand, step_starts
from tracekit.errors import PlanError
from tracekit.rows import UNUSED


def cache_spec(experts_per_layer: Sequence[int], expert_bytes: Sequence[int], plan: Plan) -> CacheSpec:
    """What `plan` means for a model with these MoE layers. Raises CapacityError."""
    num_experts = max(experts_per_layer)
    capacity, size = plan.capacity.groups(experts_per_layer, num_experts, expert_bytes)
    pinned: tuple[int, ...] = ()
    if eviction_policy(plan.eviction.policy).needs_profile:
        if plan.eviction.profile is None:
            raise PlanError(f"eviction policy {plan.eviction.policy!r} needs eviction.profile = a trace (--profile)")
        pinned = most_popular(Trace.open(plan.eviction.profile), experts_per_layer, capacity, size)
    elif plan.eviction.profile is not None:
        raise PlanError(f"eviction policy {plan.eviction.policy!r} reads no profile: remove eviction.profile")
    _check_artefacts(plan)
    return CacheSpec(
        pinned=pinned,
        predictor=plan.prefetch.artefact,
        estimator=plan.eviction.artefact,
        layers=len(experts_per_layer),
        experts=num_experts,
        capacity=capacity,
        size=size,
        eviction=plan.eviction.policy,
        eviction_parameters=plan.eviction.parameters,
        prefetch=plan.prefetch.predictor,
        prefetch_parameters=plan.prefetch.parameters,
        distance=plan.prefetch.distance,
        count=plan.prefetch.count,
        staging=plan.prefetch.staging,
        into_cache=plan.prefetch.target == "cache",
    )


def _check_artefacts(plan: Plan) -> None:
    """Raise PlanError unless just the policies that read a fitted predictor have one."""
    for kind, name, reads, artefact in (
        ("eviction", plan.eviction.policy, eviction_policy(plan.eviction.policy).reads, plan.eviction.artefact),
        ("prefetch", plan.prefetch.predictor, prefetcher(plan.prefetch.predictor).reads, plan.prefetch.artefact),
    ):
        if reads.startswith("predicted") and artefact is None:
            raise PlanError(
                f"{kind} policy {name!r} needs {kind}.artefact = a fitted predictor's directory (--{kind}-artefact); "
                "tracekit fit makes one"
            )
        if artefact is not None and not reads.startswith("predicted"):
            raise PlanError(f"{kind} policy {name!r} reads no fitted predictor: remove {kind}.artefact")


def most_popular(
    profile: Trace, experts_per_layer: Sequence[int], capacity: Sequence[int], size: np.ndarray
) -> tuple[int, ...]:
    """Keys of the experts that the most tokens of `profile` chose, as many as fit into each group; ties by key."""
    if list(profile.manifest.experts_per_layer) != list(experts_per_layer):
        raise PlanError(f"{profile.path} is of a model with other MoE layers or experts: it is no profile for this one")
    layers, experts = len(experts_per_layer), max(experts_per_layer)
    keys = (profile.experts + (np.arange(layers) * experts)[None, :, None])[profile.experts != UNUSED]
    order = np.argsort(-np.bincount(keys, minlength=layers * experts), kind="stable")
    left = list(capacity)
    pinned = []
    for key in order.tolist():
        group = key // experts if len(left) > 1 else 0
        if key % experts < experts_per_layer[key // experts] and size[key] <= left[group]:
            left[group] -= int(size[key])
            pinned.append(key)
    return tuple(pinned)


def iter_decisions(
    trace: Trace,
    spec: CacheSpec,
    *,
    chunk: int = CHUNK,
    compiled: bool = True,
    reshape: Callable[[Demand], Demand] | None = None,
    demands: Iterable[Demand] | None = None,
    hints: Iterable[np.ndarray] | None = None,
) -> Iterator[tuple[Demand, Events]]:
    """Demand and decisions of `trace` under `spec`, in pieces of whole steps of about `chunk` references.

    `reshape` replaces each piece's demand before anything is decided (for bounds). `demands` is the trace's demand from
    its first step on, where it is at hand already, and `hints` what `iter_hints` makes of these for `count` or more.
    Raises PolicyError for an unknown policy, PlanError when the trace lacks what the prefetcher reads.
    """
    cache = ExpertCache(spec, compiled=compiled)
    known = _Hints(trace, spec, cache.prefetch_class.reads)
    ranked = None if hints is None else iter(hints)
    if spec.prefetch != "none":
        # Room for hints and events grows with what may be suggested.
        chunk = max(1, chunk * trace.top_k // max(trace.top_k, min(spec.count, spec.experts)))
    pieces = iter_demand(trace, chunk) if demands is None else iter(demands)
    if reshape is not None:
        pieces = map(reshape, pieces)
    for demand, (signal, signal_recency) in with_signals(cache.eviction_class.reads, trace, pieces, spec):
        hint = known.of(demand) if ranked is None else np.ascontiguousarray(next(ranked)[:, : known.count])
        batch = Batch(
            demand.layer,
            demand.start,
            demand.keys,
            demand.recency,
            signal,
            signal_recency,
            hint,
        )
        yield demand, cache.run(batch)


def iter_hints(trace: Trace, spec: CacheSpec, demands: Iterable[Demand]) -> Iterator[np.ndarray]:
    """What a prefetcher that reads lookahead is told, for each piece of demand: i32 [visits, count], best first.

    Ranking takes far longer than deciding, and follows from distance and count alone: plans may share it. Raises
    PlanError when the trace lacks the lookahead.
    """
    known = _Hints(trace, spec, "lookahead")
    return map(known.of, demands)


class _Hints:
    """What a prefetcher reads, as ranked keys of the target layer: i32 [visits, count], padded with -1."""

    def __init__(self, trace: Trace, spec: CacheSpec, reads: str) -> None:
        self.spec, self.reads = spec, reads
        self.count = 0 if reads == "nothing" else min(spec.count, spec.experts)
        self.experts_per_layer = trace.manifest.experts_per_layer
        self.top_k = trace.top_k
        self.foresight = Foresight(trace, spec) if reads == "predicted" else None
        if reads == "lookahead":
            self.lookahead = trace.lookahead(spec.distance)
            if self.lookahead is None:
                have = ", ".join(str(d) for d in trace.lookahead_distances) or "none"
                raise PlanError(
                    f"prefetcher {spec.prefetch!r} reads lookahead logits at distance {spec.distance}, which "
                    f"{trace.path} does not hold (it has: {have}); record with --lookahead {spec.distance} or choose "
                    "another prefetcher"
                )
            self.starts = step_starts(trace.step)

    def of(self, demand: Demand) -> np.ndarray:
        spec = self.spec
        hints = np.full((demand.steps, spec.layers, self.count), -1, np.int32)
        if self.reads == "lookahead":
            assert self.lookahead is not None
            starts = self.starts[demand.first_step : demand.first_step + demand.steps + 1]
            rows = self.lookahead[starts[0] : starts[-1]]
            for layer in range(spec.layers - spec.distance):
                target = layer + spec.distance
                logits = rows[:, layer, : self.experts_per_layer[target]]
                ranked = rank_lookahead(logits, starts - starts[0], self.top_k, self.count)
                hints[:, layer] = np.where(ranked >= 0, ranked + target * spec.experts, -1)
        elif self.foresight is not None:
            hints[:] = self.foresight.hints(demand)
        elif self.reads == "future":
            _future(demand.keys, demand.start, spec.layers, spec.distance, hints)
        return hints.reshape(demand.visits, self.count)


@njit(cache=True)
def _future(keys, start, layers, distance, hints):  # type: ignore[no-untyped-def]
    for step in range(hints.shape[0]):
        for layer in range(layers - distance):
            first = start[step * layers + layer + distance]
            last = start[step * layers + layer + distance + 1]
            for i in range(min(last - first, hints.shape[2])):
                hints[step, layer, i] = keys[first + i]
