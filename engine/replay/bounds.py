"""Bounds: what clairvoyant decisions would allow at a plan's capacity."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from engine.replay.passes import Replayed, Steps, run
from engine.replay.result import Bounds
from engine.replay.setting import Setting
from engine.simulator.costs import Costs
from engine.simulator.timeline import STALLS
from policies.cache import CacheSpec
from tracekit.demand import Demand
from tracekit.rows import DECODE
from tracekit.trace import Trace

BOUNDED_LOOKUPS = 20_000_000
"""Beyond this many chosen experts a replay computes bounds only when asked to: they hold all demand in memory."""


def is_bounded(trace: Trace, asked: bool | None) -> bool:
    """Whether bounds and regret are computed: as asked, or if nobody did, where the trace is not too long."""
    return trace.tokens * trace.layers * trace.top_k <= BOUNDED_LOOKUPS if asked is None else asked


def bounds_passes(*, timed: bool) -> int:
    """How many passes the bounds take, beside the plan's own; the second only if there are decode steps."""
    return 2 if timed else 1


def find_bounds(
    trace: Trace, setting: Setting, done: Replayed, progress: Callable[[int], object] | None = None
) -> Bounds:
    """The bounds beside `done`, the finished pass of the setting's plan."""
    best = clairvoyant(setting.spec)
    (found,) = run(trace, best, progress=progress)
    loads = None
    if setting.costs is not None and done.tokens[DECODE]:
        loads = fewest_decode_loads(trace, best, progress=progress)
    return bounds_of(found.hit_ratio, loads, setting.costs, done)


def clairvoyant(spec: CacheSpec) -> CacheSpec:
    """The same cache under Belady's decisions with bypassing, nothing pinned and nothing prefetched."""
    best = replace(without_prefetching(spec), eviction="belady-bypass", eviction_parameters=None, estimator=None)
    return replace(best, pinned=())


def without_prefetching(spec: CacheSpec) -> CacheSpec:
    """The same cache, in which nothing is prefetched."""
    return replace(
        spec, prefetch="none", prefetch_parameters=None, predictor=None, distance=1, count=2, into_cache=False
    )


def fewest_decode_loads(
    trace: Trace,
    best: CacheSpec,
    *,
    steps: Steps | None = None,
    demands: Iterable[Demand] | None = None,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """The fewest demand loads of decode steps in each layer under clairvoyant decisions: i64 [layers].

    The fewest copies in all are not the fewest copies in decode steps: this pass is one in which prefill is free (see
    `free_prefill`), and no plan copies fewer experts between one prefill and the next.
    """
    (free,) = run(trace, best, steps=steps, demands=demands, reshape=free_prefill, progress=progress)
    loads: np.ndarray = free.demand_loads[DECODE]
    return loads


def bounds_of(hit_ratio: float, decode_loads: np.ndarray | None, costs: Costs | None, done: Replayed) -> Bounds:
    """The bounds on hits and, from the fewest loads of decode on a machine, on the speed of decoding.

    `link`: these loads over the link and nothing else; `compute`: the plan's own work and no copies at all.
    """
    link = compute = None
    tokens = int(done.tokens[DECODE])
    if costs is not None and decode_loads is not None and done.timeline is not None and tokens:
        copies = float(decode_loads @ costs.least_link_ns) * costs.scale
        work = float(done.timeline.spent[DECODE, :STALLS].sum()) * costs.scale
        link = tokens / (copies / 1e9) if copies else None
        compute = tokens / (work / 1e9) if work else None
    known = [speed for speed in (link, compute) if speed is not None]
    return Bounds(
        hit_ratio=hit_ratio,
        link_tokens_per_second=link,
        compute_tokens_per_second=compute,
        best_tokens_per_second=min(known) if known else None,
    )


def free_prefill(demand: Demand) -> Demand:
    """The demand with every prefill visit demanding all experts of its layer.

    What a prefill loads is not counted towards decode, so a clairvoyant cache may leave it with whatever it wants.
    """
    counts = np.diff(demand.start)
    prefill = np.repeat(demand.phase != DECODE, demand.layers)
    new_counts = np.where(prefill, demand.experts, counts)
    start = np.concatenate([[0], np.cumsum(new_counts)]).astype(np.int64)
    keys = np.empty(start[-1], np.uint32)
    recency = np.empty(start[-1], np.uint32)
    tokens = np.ones(start[-1], np.int32)
    everything = np.arange(demand.experts, dtype=np.int32)
    for visit in np.flatnonzero(prefill):
        place = slice(start[visit], start[visit + 1])
        keys[place] = recency[place] = demand.layer[visit] * demand.experts + everything
    decode = np.repeat(~prefill, new_counts)
    kept = np.repeat(~prefill, counts)
    keys[decode], recency[decode], tokens[decode] = demand.keys[kept], demand.recency[kept], demand.tokens[kept]
    return replace(demand, start=start, keys=keys, recency=recency, tokens=tokens)
