"""`replay`: a plan's decisions on a recorded trace, and their time on a modelled machine."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np

from engine.decisions.evidence import check_evidence
from engine.hardware import HardwareProfile, load_hardware
from engine.plan.plan import Plan
from engine.replay.advice import advice, fit_warnings
from engine.replay.bounds import bounds_passes, find_bounds
from engine.replay.estimates import find_estimates
from engine.replay.passes import DECODE, Replayed, run
from engine.replay.predictor_costs import with_predictors
from engine.replay.regret import find_regret, regret_passes
from engine.replay.result import Counts, HitsBy, PhaseCounts, Result, Time, Tpot
from engine.shapes import ModelShape, load_shape
from engine.simulator.costs import Costs, model_costs, stored_expert_bytes
from engine.simulator.timeline import CAUSES, LATE, STALLS, USEFUL, WASTED
from policies.events import BYPASS, HIT_PREFETCHED, LOAD, PREFETCH, Events
from tracekit import Trace
from tracekit.demand import Demand
from tracekit.errors import TraceError

BOUNDED_LOOKUPS = 20_000_000
"""Beyond this many chosen experts a replay computes bounds only when asked to."""


def replay(
    trace: Trace,
    plan: Plan,
    hardware: HardwareProfile | str | None = None,
    *,
    model_shape: ModelShape | str | None = None,
    bounds: bool | None = None,
    allow_fitted: bool = False,
    progress: Callable[[int], object] | None = None,
    on_events: Callable[[Demand, Events], object] | None = None,
    on_done: Callable[[Replayed], object] | None = None,
    log: range | None = None,
) -> Result:
    """Replay `plan` on `trace`; with `hardware`, also time it.

    Args:
        hardware: a profile or the name of a shipped one; None counts hits and bytes only.
        model_shape: time (and size) experts as those of this model; None uses the trace's own model.
        bounds: also replay Belady's decisions at the same capacity, to say how far from the best the plan is. They need
            the whole trace's demand in memory, so None leaves them out beyond `BOUNDED_LOOKUPS`.
        allow_fitted: replay also requests that a fitted predictor of the plan has learned from; the result says so.
        progress: called with the number of tokens of each finished piece of each pass (see `replay_passes`).
        on_events: called with each piece's demand and decisions.
        on_done: called with the plan's own pass: times by step and visit, the timeline's log.
        log: the steps, by running number from 0, whose course the timeline logs.

    Raises:
        TracekitError: the trace, the plan and the hardware do not fit together.
    """
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    model = load_shape(model_shape) if isinstance(model_shape, str) else model_shape
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to replay")
    seen = check_evidence(trace, plan, allow_fitted=allow_fitted)
    weights = plan.weights
    costs = None
    if machine is not None:
        cpu = plan.compute.cpu_experts
        costs = model_costs(trace.manifest, machine, model, weights.experts, weights.attention, cpu)
        costs = with_predictors(costs, plan, machine)
    done = run(trace, plan, costs, model, progress=progress, on_events=on_events, log=log)
    if on_done is not None:
        on_done(done)
    sizes = stored_expert_bytes(trace.manifest, model, weights.experts)
    counts = [counts_of(done, [phase], sized=bool(sizes)) for phase in (0, 1)]
    total = counts_of(done, [0, 1], sized=bool(sizes))
    time = None if machine is None or costs is None else time_of(done, costs, machine, model)
    warnings = seen + advice(trace, plan, done, sizes, costs, time)
    if bounds is None and not is_bounded(trace, bounds):
        warnings.append(
            "no bounds: they would read this long trace into memory and take longer than all else; --bounds asks"
        )
    best = find_bounds(trace, plan, costs, model, done, progress) if is_bounded(trace, bounds) else None
    regret = None
    if best is not None and machine is not None and costs is not None:
        regret = find_regret(trace, plan, costs, machine, model, done, progress)
    estimates = None
    if machine is not None and costs is not None:
        estimates = find_estimates(trace, plan, costs, machine, model, done)
        warnings += fit_warnings(trace, plan, machine, model, costs)
    return Result(
        **msgspec.structs.asdict(total),
        phases=PhaseCounts(prefill=counts[0], decode=counts[1]),
        time=time,
        bounds=best,
        regret=regret,
        estimates=estimates,
        warnings=warnings,
        provenance=_provenance(trace, plan, machine, model),
    )


def is_bounded(trace: Trace, asked: bool | None) -> bool:
    """Whether a replay computes bounds and regret: as asked, or if nobody did, where the trace is not too long."""
    return trace.tokens * trace.layers * trace.top_k <= BOUNDED_LOOKUPS if asked is None else asked


def replay_passes(trace: Trace, plan: Plan, *, timed: bool, bounds: bool | None) -> int:
    """How often a replay goes over the trace: once for the plan, then for each bound and each part of the regret."""
    if not is_bounded(trace, bounds):
        return 1
    return 1 + bounds_passes(timed=timed) + (regret_passes(plan) if timed else 0)


def counts_of(done: Replayed, phases: list[int], *, sized: bool) -> Counts:
    """The counts of these phases; bytes only if they are known."""
    kinds = done.kinds[phases].sum(axis=0)
    hits = int(kinds[: HIT_PREFETCHED + 1].sum())
    misses = int(kinds[LOAD] + kinds[BYPASS])
    return Counts(
        tokens=int(done.tokens[phases].sum()),
        lookups=hits + misses,
        hits=hits,
        misses=misses,
        hit_ratio=hits / (hits + misses) if hits + misses else 0.0,
        hits_by=HitsBy(cache=int(kinds[0]), pinned=int(kinds[1]), prefetch=int(kinds[2])),
        loads=int(kinds[LOAD]),
        bypasses=int(kinds[BYPASS]),
        prefetches=int(kinds[PREFETCH]),
        bytes_loaded=int(done.loaded[phases].sum()) if sized else None,
    )


def time_of(done: Replayed, costs: Costs, machine: HardwareProfile, shape: ModelShape | None) -> Time:
    """What a timed pass took on the machine."""
    assert done.timeline is not None
    decode = done.step_ns[done.phase == DECODE] * costs.scale
    prefill = done.step_ns[done.phase != DECODE] * costs.scale
    spent = {
        cause: int(ns) * costs.scale / 1e9 for cause, ns in zip(CAUSES, done.timeline.spent.sum(axis=0), strict=True)
    }
    total = float(done.step_ns.sum()) * costs.scale / 1e9
    percentiles = [float(p) / 1e6 for p in np.percentile(decode, (50, 95, 99))] if len(decode) else []
    used = done.timeline.prefetches
    return Time(
        hardware=machine.name,
        model_shape=None if shape is None else shape.name,
        scale=costs.scale,
        total_s=total,
        tokens_per_second=float(done.tokens[DECODE] / (decode.sum() / 1e9)) if len(decode) else None,
        tpot_ms=Tpot(p50=percentiles[0], p95=percentiles[1], p99=percentiles[2]) if percentiles else None,
        ttft_ms=float(prefill.mean()) / 1e6 if len(prefill) else None,
        compute_s=spent["dense"] + spent["experts"] + spent["dequantisation"],
        overhead_s=spent["overhead"],
        stall_s={cause: spent[cause] for cause in CAUSES[STALLS:]},
        link_utilisation=done.timeline.link_busy_ns * costs.scale / 1e9 / total if total else 0.0,
        prefetches={"useful": int(used[USEFUL]), "late": int(used[LATE]), "wasted": int(used[WASTED])},
    )


def _provenance(trace: Trace, plan: Plan, machine: HardwareProfile | None, shape: ModelShape | None) -> dict[str, Any]:
    try:
        own = version("moe-tracekit")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "moe_tracekit": own,
        "trace": str(trace.path),
        "trace_digest": trace.digest,
        "trace_source": trace.manifest.source,
        "batching": None if trace.batching is None else msgspec.to_builtins(trace.batching),
        "plan": plan.to_dict(),
        "hardware": None if machine is None else msgspec.to_builtins(machine),
        "model_shape": None if shape is None else shape.name,
    }
