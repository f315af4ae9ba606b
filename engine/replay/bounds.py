"""Bounds: what clairvoyant decisions would allow at a plan's capacity."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from typing import Literal

import msgspec
import numpy as np

from engine.decisions.run import iter_decisions
from engine.hardware import HardwareProfile
from engine.plan.misses import MissPlan
from engine.replay.given_decisions import GivenDecisions
from engine.replay.passes import Replayed, Steps, run, tally
from engine.replay.result import Bounds, SpeedBounds
from engine.replay.setting import Setting, costs_without_predictors
from engine.replay.speed_bounds import Fewest, LeastTimes, least_times
from engine.simulator.costs import Costs
from engine.simulator.least_work import LeastWork, LeastWorks
from policies.cache_spec import CacheSpec, slots_of
from policies.events import ADMIT, BYPASS, HIT_PINNED, KINDS, LOAD, PREFETCH
from tracekit.demand import Demand, iter_demand
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

BOUNDED_LOOKUPS = 20_000_000
"""Beyond this many chosen experts a replay computes bounds only when asked to: they hold all demand in memory."""
WANTED = "whatever it wants"
"""In place of the trace that a cache is warmed with. A clairvoyant cache opens none: it takes what it will need."""
PREFETCHED = "prefetched experts count as hits, so no hit ratio below 1 bounds such plans; copies does"


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
    given: GivenDecisions | None = None,
) -> Bounds:
    """The bounds beside `done`, what the finished pass of the setting's plan counts behind `warm_up` steps.

    Of decisions that are `given` in a file, and were made by no plan, it is not known which of the slots are buffers:
    all may be cache.
    """
    kinds = done.kinds.sum(axis=0)
    spec = setting.spec if given is None or given.planned else all_slots(setting.spec)
    begun = bool(kinds[HIT_PINNED]) or (given is not None and given.warm)
    prefetched = setting.spec.prefetch != "none" or bool(kinds[PREFETCH])
    best = clairvoyant(spec, begun=begun)
    # What is not counted is free, lest Belady spare there what it could win later.
    free = partial(free_steps, first=warm_up, phases=()) if warm_up else None
    (found,) = run(trace, as_small_as_any(best), reshape=free, progress=progress)
    counted = fewest_copies(found.counted(warm_up), best, prefetched=prefetched, warm_up=warm_up)
    if setting.costs is None or not done.tokens[DECODE]:
        return counted
    works = LeastWorks(bounding_costs(setting))
    context = Steps.of(trace).context

    def add(demand: Demand) -> None:
        works.add(demand, context[demand.first_step : demand.first_step + demand.steps])

    fewest = fewest_decode_loads(trace, best, warm_up=warm_up, on_demand=add, progress=progress)
    return bounds_of(counted, fewest, setting, works.found, int(done.tokens[DECODE]))


def clairvoyant(spec: CacheSpec, *, begun: bool = False) -> CacheSpec:
    """The same cache under Belady's decisions with bypassing, nothing pinned and nothing prefetched.

    What is pinned was never copied, and no reset takes it away. Beside a plan that pins (or with `begun`) this cache
    therefore begins with whatever it wants, as beside one that is warm, and keeps it.
    """
    best = replace(
        copying(without_prefetching(spec)), eviction="belady-bypass", eviction_parameters=None, estimator=None
    )
    if not (spec.pinned or spec.begins or spec.domains is not None or begun):
        return best
    return replace(best, pinned=(), begins=(), domains=None, reset=False, warm=spec.warm or WANTED)


def copying(spec: CacheSpec) -> CacheSpec:
    """The same cache, in which every miss is copied, and kept if there is room."""
    plain = replace(spec, where="copy", copied=None, most_tokens=(), per_step=None, even=False)
    return replace(plain, admission="always", admission_parameters=None)


def all_slots(spec: CacheSpec) -> CacheSpec:
    """One cache of all slots, buffers included, for experts of any layer."""
    return replace(spec, capacity=(slots_of(spec),), size=np.ones_like(spec.size))


def as_small_as_any(best: CacheSpec) -> CacheSpec:
    """The cache if all experts that share a capacity were as small as the smallest.

    With unequal sizes clairvoyant caching is NP-hard. Were all as small as the smallest, it would miss no more.
    """
    sizes = best.size[best.size > 0]
    mixed = len(best.capacity) == 1 and len(set(sizes.tolist())) > 1
    return replace(best, size=np.full_like(best.size, sizes.min())) if mixed else best


def fewest_copies(found: Replayed, best: CacheSpec, *, prefetched: bool, warm_up: int = 0) -> Bounds:
    """The bounds on copies (or what the host computes instead) and on hits, from a clairvoyant pass over what counts.

    A copy ahead of demand is no less of a copy, so a plan with prefetching makes as many, but for those that lie in its
    staging buffers when counting begins. Each of them counts as a hit, so with prefetching hits have no bound but 1.
    """
    kinds = found.kinds.sum(axis=0)
    copies, lookups = int(kinds[LOAD] + kinds[BYPASS]), int(kinds[: ADMIT + 1].sum())
    if not prefetched:
        return Bounds(hit_ratio=(lookups - copies) / lookups if lookups else 0.0, copies=copies)
    spared = best.staging if warm_up or best.warm is not None else 0
    return Bounds(hit_ratio=None, no_hit_ratio=PREFETCHED, copies=max(0, copies - spared))


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


def bounding_costs(setting: Setting) -> list[Costs]:
    """The machines that bounds are found on: the plan's under its engine, each way of computing experts, then the
    machine alone: no engine's time, weights read as they are stored, and the CPU helps if there is one."""
    plan, machine = setting.plan, setting.machine
    assert machine is not None

    def costs(on: HardwareProfile, experts: Literal["each", "fused"], kernels: str, miss: MissPlan) -> Costs:
        compute = msgspec.structs.replace(plan.compute, experts=experts, kernels=kernels)
        planned = plan.replace(compute=compute, miss=miss)
        return costs_without_predictors(setting.manifest, planned, on, setting.shape, setting.stored)

    ways = [costs(machine, *way, plan.miss) for way in (("each", "eager"), ("each", "grouped"), ("fused", "grouped"))]
    helped = MissPlan(where="copy" if machine.cpu is None else "host")
    alone = costs(machine.without_engine(), "fused", "grouped", helped)
    return [*ways, alone]


def fewest_decode_loads(
    trace: Trace,
    best: CacheSpec,
    *,
    demands: Iterable[Demand] | None = None,
    warm_up: int = 0,
    on_demand: Callable[[Demand], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Fewest:
    """The fewest copies of decode steps in any plan with the capacity and the staging buffers of `best`, which says
    how clairvoyant decisions are taken.

    The fewest copies in all are not the fewest copies in decode steps: this pass is one in which prefill is free (see
    `free_steps`), and so is what lies in the cache before the trace begins, for plans may pin. A plan with prefetching
    may bring as many experts into decode as it has staging buffers, each time. The first `warm_up` steps are free like
    a prefill. `demands`: the trace's, where it is at hand already. `on_demand` is called with each piece.
    """
    best = as_small_as_any(best)
    unsized = np.zeros(best.layers, np.int64)
    loads, last, entered = np.zeros((2, best.layers), np.int64), DECODE, 0
    given = iter_demand(trace) if demands is None else demands
    if warm_up:
        given = (uncounted(demand, warm_up) for demand in given)
    for demand, events in iter_decisions(trace, best, demands=chain([everything(best)], map(free_steps, given))):
        if demand.first_step < 0:
            continue
        kinds, loaded = np.zeros((demand.steps, KINDS), np.int64), np.zeros(demand.steps, np.int64)
        tally(events.code, events.start, demand.phase, best.experts, unsized, kinds, loads, loaded)
        entered += int((np.diff((demand.phase == DECODE).astype(np.int8), prepend=np.int8(last == DECODE)) > 0).sum())
        last = int(demand.phase[-1])
        if on_demand is not None:
            on_demand(demand)
        if progress is not None:
            progress(int(demand.step_tokens.sum()))
    return Fewest(loads[DECODE], entered * best.staging, together=len(best.capacity) == 1)


def bounds_of(counted: Bounds, fewest: Fewest, setting: Setting, works: Sequence[LeastWork], tokens: int) -> Bounds:
    """`counted`, and from the fewest loads of decode and its work on `bounding_costs` the bounds on decode speed."""
    assert setting.machine is not None
    times = [least_times(fewest, on, work) for on, work in zip(bounding_costs(setting), works, strict=True)]
    *ways, alone = times
    engine = reduce(LeastTimes.least, ways)

    def speed(nanoseconds: float) -> float | None:
        return tokens / (nanoseconds * setting.scale / 1e9) if nanoseconds else None

    return msgspec.structs.replace(
        counted,
        engine=setting.machine.engine.name,
        link_tokens_per_second=speed(engine.link),
        compute_tokens_per_second=speed(engine.compute),
        best_tokens_per_second=speed(engine.best),
        hardware=SpeedBounds(
            link_tokens_per_second=speed(alone.link),
            compute_tokens_per_second=speed(alone.compute),
            best_tokens_per_second=speed(alone.best),
        ),
    )


def everything(spec: CacheSpec) -> Demand:
    """A step before the first, which demands all experts: what a cache begins with is not counted towards decode."""
    count = spec.layers * spec.experts
    keys = np.arange(count, dtype=np.uint32)
    return Demand(
        layers=spec.layers,
        experts=spec.experts,
        first_step=-1,
        layer=np.arange(spec.layers, dtype=np.int32),
        start=np.arange(spec.layers + 1, dtype=np.int64) * spec.experts,
        keys=keys,
        recency=keys,
        tokens=np.ones(count, np.int32),
        step_tokens=np.ones(1, np.int32),
        phase=np.zeros(1, np.uint8),
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


def uncounted(demand: Demand, first: int) -> Demand:
    """The demand with the `first` steps of the trace as prefill, which no bound counts."""
    phase = demand.phase.copy()
    phase[: max(0, first - demand.first_step)] = PREFILL
    return replace(demand, phase=phase)
