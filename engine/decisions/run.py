"""Decisions on a trace: its demand, what the policies know of it, and what they decide, piece by piece."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from engine.decisions.domains import switches_of
from engine.decisions.hints import Hints
from engine.decisions.requests import request_steps
from engine.decisions.signals import GateWeights, Signal, with_signals
from engine.decisions.tiered import TieredTrace
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.cache_state import Batch
from policies.events import Events
from policies.switching import Kept
from policies.tiered_cache import AnyCache, TieredCache, cache_of
from tracekit.demand import CHUNK, Demand, demand_of, iter_demand
from tracekit.errors import PlanError
from tracekit.rows import PREFILL
from tracekit.trace import Trace

Piece = tuple[Demand, Events]
Told = tuple[Demand, Signal]
OnSwitch = Callable[[int, np.ndarray, bool], object]
"""(step, events as `policies.events.pack` makes them, whether it begins there) of a switch to another domain"""
OnEnd = Callable[[AnyCache], object]


def iter_decisions(
    trace: Trace,
    spec: CacheSpec,
    *,
    chunk: int = CHUNK,
    compiled: bool = True,
    reshape: Callable[[Demand], Demand] | None = None,
    demands: Iterable[Demand] | None = None,
    hints: Iterable[np.ndarray] | None = None,
    on_switch: OnSwitch | None = None,
    on_end: OnEnd | None = None,
) -> Iterator[Piece]:
    """Demand and decisions of `trace` under `spec`, in pieces of whole steps of about `chunk` references.

    `reshape` replaces each piece's demand before anything is decided (for bounds). `demands` is the trace's demand from
    its first step on, where it is at hand already, and `hints` what `iter_hints` makes of these for `count` or more.
    `on_switch` is called when the cache has switched to another domain, with the step and what that changed, `on_end`
    with the cache when all is decided.
    Raises PolicyError for an unknown policy, PlanError when the trace lacks what the prefetcher reads, or its requests
    do not follow one another and the cache starts anew with each.
    """
    cache = first_cache(spec, compiled=compiled)
    if spec.prefetch != "none":
        # Room for hints and events grows with what may be suggested.
        chunk = max(1, chunk * trace.top_k // max(trace.top_k, min(spec.count, spec.experts)))
    pieces = iter_demand(trace, chunk) if demands is None else iter(demands)
    if reshape is not None:
        pieces = map(reshape, pieces)
    yield from _decisions(cache, trace, pieces, hints, switches=True, on_switch=on_switch)
    if on_end is not None:
        on_end(cache)


def first_cache(spec: CacheSpec, *, compiled: bool = True) -> AnyCache:
    """The cache before the first visit: empty, with what `spec.begins` names, or as these decisions leave it at the end
    of the trace `spec.warm`, on which no domain is told.

    What a fitted predictor remembers of that trace's last steps is not part of the cache. A clairvoyant cache is not
    warmed here: it begins with what it wants, which it knows only with the trace at hand. Raises PlanError.
    """
    cache = cache_of(spec, compiled=compiled)
    if spec.begins and cache.eviction_class.reads != "next-use":
        cache.warm(spec.begins)
    if spec.warm is not None and cache.eviction_class.reads != "next-use":
        trace = Trace.open(Path(spec.warm))
        if (trace.layers, trace.num_experts) != (spec.layers, spec.experts):
            raise PlanError(
                f"cache.warm: {trace.path} is of {trace.layers} MoE layers of {trace.num_experts} experts, the plan's "
                f"model has {spec.layers} of {spec.experts}: give a trace of that model"
            )
        for _ in _decisions(cache, trace, iter_demand(trace), None):
            pass
        cache.count_from_here()
    return cache


def _decisions(
    cache: AnyCache,
    trace: Trace,
    pieces: Iterator[Demand],
    ranked: Iterable[np.ndarray] | None,
    *,
    switches: bool = False,
    on_switch: OnSwitch | None = None,
) -> Iterator[Piece]:
    spec, reads = cache.spec, cache.eviction_class.reads
    known = Hints(trace, spec, cache.prefetch_class.reads)
    given = None if ranked is None else iter(ranked)
    restarts, switching = frozenset[int](), dict[int, Kept]()
    if spec.reset:
        restarts = frozenset(request_steps(trace).tolist())
    if spec.domains is not None and switches:
        found = switches_of(trace, spec.domains, spec.experts)
        switching = {switch.step: spec.domains.kept[switch.domain] for switch in found}
    if cuts := restarts | switching.keys():
        kept: deque[np.ndarray] = deque()
        pieces = _cut(pieces, np.array(sorted(cuts)), given, kept)
        given = None if given is None else _drained(kept)
    if (spec.warm is not None or spec.begins) and reads == "next-use":
        pieces = chain([_everything(spec)], pieces)
    gate = GateWeights(trace, "admission") if cache.admission_class.reads == "gate-share" else None
    told = with_signals(reads, trace, pieces, spec, restarts)
    tiers = TieredTrace(trace, cache) if isinstance(cache, TieredCache) else None
    for (demand, (signal, signal_recency)), following in _followed(told, known.looks_on):
        if demand.first_step in restarts:
            cache.restart()
            known.forget()
        if demand.first_step in switching and isinstance(cache, ExpertCache):
            cache.switch(switching[demand.first_step])
        if demand.first_step < 0:
            hint = known.none(demand)
        elif given is not None:
            hint = np.ascontiguousarray(next(given)[:, : known.count])
        else:
            hint = known.of(demand, following)
        if tiers is not None:
            yield tiers.decide(demand, signal, hint)
            continue
        assert not isinstance(cache, TieredCache)
        batch = Batch(demand.layer, demand.start, demand.keys, demand.recency, signal, signal_recency, hint)
        if spec.counts_tokens:
            batch = batch._replace(tokens=demand.tokens)
        if gate is not None and demand.first_step >= 0:
            batch = batch._replace(gate=gate.of(demand))
        events = cache.run(batch)
        if demand.first_step < 0:
            cache.count_from_here()
        else:
            if on_switch is not None:
                changed, begins = cache.changed(), demand.first_step in switching
                if begins or len(changed):
                    on_switch(demand.first_step, changed, begins)
            yield demand, events


def _cut(
    pieces: Iterator[Demand], steps: np.ndarray, given: Iterator[np.ndarray] | None, kept: deque[np.ndarray]
) -> Iterator[Demand]:
    """The pieces, cut before these steps; what is given for each piece is cut alike and put into `kept`."""
    for demand in pieces:
        hint = None if given is None else next(given)
        inside = steps[(steps > demand.first_step) & (steps < demand.first_step + demand.steps)] - demand.first_step
        for first, last in pairwise([0, *inside.tolist(), demand.steps]):
            if hint is not None:
                kept.append(hint[first * demand.layers : last * demand.layers])
            yield demand.part(first, last) if len(inside) else demand


def _drained(kept: deque[np.ndarray]) -> Iterator[np.ndarray]:
    while True:
        yield kept.popleft()


def _followed(told: Iterator[Told], looks_on: bool) -> Iterator[tuple[Told, Demand | None]]:
    """Each piece with the demand of the next, where somebody looks on to it."""
    before: Told | None = None
    for piece in told:
        if not looks_on:
            yield piece, None
        elif before is not None:
            yield before, piece[0]
        before = piece
    if looks_on and before is not None:
        yield before, None


def _everything(spec: CacheSpec) -> Demand:
    """A step before the first in which every expert is demanded: a clairvoyant cache keeps of them what it wants."""
    experts = np.tile(np.arange(spec.experts, dtype=np.uint16), (1, spec.layers, 1))
    return demand_of(experts, spec.experts, np.array([0, 1]), np.array([PREFILL], np.uint8), -1)
