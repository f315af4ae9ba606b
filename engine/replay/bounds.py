"""Bounds: what clairvoyant decisions would allow at a plan's capacity."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.plan.plan import EvictionPlan, Plan, PrefetchPlan
from engine.replay.passes import DECODE, Replayed, run
from engine.replay.result import Bounds
from engine.shapes import ModelShape
from engine.simulator.costs import Costs
from engine.simulator.timeline import STALLS
from policies.events import BYPASS, HIT_PREFETCHED, LOAD
from tracekit import Trace
from tracekit.demand import Demand


def bounds_passes(*, timed: bool) -> int:
    """How many replays the bounds take, beside the plan's own; the second only if there are decode steps."""
    return 2 if timed else 1


def find_bounds(
    trace: Trace,
    plan: Plan,
    costs: Costs | None,
    shape: ModelShape | None,
    done: Replayed,
    progress: Callable[[int], object] | None = None,
) -> Bounds:
    """The bounds beside `done`, the finished pass of `plan`.

    The bound on hits is Belady's decisions with bypassing on the trace as it is. The fewest copies in all are not the
    fewest copies in decode steps, so the bound on decode speed comes from a second pass in which prefill is free (see
    `free_prefill`): no plan copies fewer experts between one prefill and the next.
    """
    clairvoyant = plan.replace(
        eviction=EvictionPlan(policy="belady-bypass"), prefetch=PrefetchPlan(staging=plan.prefetch.staging)
    )
    best = run(trace, clairvoyant, shape=shape, progress=progress)
    hits = int(best.kinds[:, : HIT_PREFETCHED + 1].sum())
    lookups = hits + int(best.kinds[:, LOAD].sum() + best.kinds[:, BYPASS].sum())
    link = compute = None
    tokens = int(done.tokens[DECODE])
    if costs is not None and done.timeline is not None and tokens:
        free = run(trace, clairvoyant, costs, shape, progress=progress, timed=False, reshape=free_prefill)
        copies = float(free.copy_ns[DECODE]) * costs.scale
        work = float(done.timeline.spent[DECODE, :STALLS].sum()) * costs.scale
        link = tokens / (copies / 1e9) if copies else None
        compute = tokens / (work / 1e9) if work else None
    known = [bound for bound in (link, compute) if bound is not None]
    return Bounds(
        hit_ratio=hits / lookups if lookups else 0.0,
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
