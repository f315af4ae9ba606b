"""Bounds: what clairvoyant decisions would allow at a plan's capacity."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from engine.replay.passes import Replayed, Steps, run
from engine.replay.result import Bounds
from engine.replay.setting import Setting
from engine.simulator.costs import Costs
from engine.simulator.timeline import STALLS
from policies.cache import CacheSpec
from tracekit.demand import Demand
from tracekit.rows import DECODE, PREFILL
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
    trace: Trace,
    setting: Setting,
    done: Replayed,
    progress: Callable[[int], object] | None = None,
    *,
    warm_up: int = 0,
) -> Bounds:
    """The bounds beside `done`, what the finished pass of the setting's plan counts behind `warm_up` steps."""
    best = clairvoyant(setting.spec)
    # What is not counted is free, lest Belady spare there what it could win later.
    free = partial(free_steps, first=warm_up, phases=()) if warm_up else None
    (found,) = run(trace, best, reshape=free, progress=progress)
    loads = None
    if setting.costs is not None and done.tokens[DECODE]:
        loads = fewest_decode_loads(trace, best, warm_up=warm_up, progress=progress)
    return bounds_of(found.counted(warm_up).hit_ratio, loads, setting.costs, done)


def clairvoyant(spec: CacheSpec) -> CacheSpec:
    """The same cache under Belady's decisions with bypassing, nothing pinned and nothing prefetched."""
    best = replace(without_prefetching(spec), eviction="belady-bypass", eviction_parameters=None, estimator=None)
    return replace(best, pinned=())


def without_prefetching(spec: CacheSpec) -> CacheSpec:
    """The same cache, in which nothing is prefetched."""
    return replace(
        spec,
        prefetch="none",
        prefetch_parameters=None,
        predictor=None,
        distance=1,
        count=2,
        into_cache=False,
        wrap=False,
    )


def fewest_decode_loads(
    trace: Trace,
    best: CacheSpec,
    *,
    steps: Steps | None = None,
    demands: Iterable[Demand] | None = None,
    warm_up: int = 0,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """The fewest demand loads of decode steps in each layer under clairvoyant decisions: i64 [layers].

    The fewest copies in all are not the fewest copies in decode steps: this pass is one in which prefill, and the first
    `warm_up` steps, are free (see `free_steps`), and no plan copies fewer experts between one prefill and the next.
    """
    free_ones = partial(free_steps, first=warm_up)
    (free,) = run(trace, best, steps=steps, demands=demands, reshape=free_ones, warm_up=warm_up, progress=progress)
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


def free_steps(demand: Demand, first: int = 0, phases: Sequence[int] = (PREFILL,)) -> Demand:
    """The demand with every visit of these `phases`, and of the `first` steps, demanding all experts of its layer.

    What such a step loads is not counted, so a clairvoyant cache may leave it with whatever it wants.
    """
    counts = np.diff(demand.start)
    free = np.isin(demand.phase, phases)
    free[: max(0, first - demand.first_step)] = True
    prefill = np.repeat(free, demand.layers)
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
