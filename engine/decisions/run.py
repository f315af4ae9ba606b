"""Decisions on a trace: its demand, what the policies know of it, and what they decide, piece by piece."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine.decisions.hints import Hints
from engine.decisions.signals import with_signals
from policies.cache import CacheSpec, ExpertCache
from policies.cache_state import Batch
from policies.events import Events
from tracekit.demand import CHUNK, Demand, iter_demand
from tracekit.trace import Trace


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
    known = Hints(trace, spec, cache.prefetch_class.reads)
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
