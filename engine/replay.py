"""`replay`: a plan's decisions on a recorded trace, and their time on a modelled machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy as np

from engine.decisions import cache_spec, iter_decisions
from engine.hardware import HardwareProfile, load_hardware
from engine.plan import EvictionPlan, Plan, PrefetchPlan
from engine.result import Bounds, Counts, HitsBy, PhaseCounts, Result, Time, Tpot
from engine.shapes import ModelShape, load_shape
from engine.simulator.costs import Costs, model_costs, stored_expert_bytes
from engine.simulator.timeline import CAUSES, LATE, USEFUL, WASTED, Timeline
from policies.decide import HIT_PREFETCHED, LOAD, PREFETCH, STREAM, Events
from tracekit import Trace
from tracekit.demand import Demand, step_starts
from tracekit.errors import TraceError

KINDS = 8
DECODE = 1


@dataclass
class Replayed:
    """A replay's sums and, if timed, its course: `step_ns` [steps] i64, `visit_end` [visits] i64 (unscaled)."""

    kinds: np.ndarray = field(default_factory=lambda: np.zeros((2, KINDS), np.int64))
    loaded: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    copy_ns: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    phase: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    visit_end: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    step_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    timeline: Timeline | None = None


def replay(
    trace: Trace,
    plan: Plan,
    hardware: HardwareProfile | str | None = None,
    *,
    shape: ModelShape | str | None = None,
    bounds: bool = True,
    progress: Callable[[int], object] | None = None,
    on_events: Callable[[Demand, Events], object] | None = None,
) -> Result:
    """Replay `plan` on `trace`; with `hardware`, also time it.

    Args:
        hardware: a profile or the name of a shipped one; None counts hits and bytes only.
        shape: time (and size) experts as those of this model; None uses the trace's own model.
        bounds: also replay Belady's decisions at the same capacity, to say how far from the best the plan is.
        progress: called with the number of tokens of each finished piece.
        on_events: called with each piece's demand and decisions.

    Raises:
        TracekitError: the trace, the plan and the hardware do not fit together.
    """
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    model = load_shape(shape) if isinstance(shape, str) else shape
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to replay")
    weights = plan.weights
    costs = None if machine is None else model_costs(trace.manifest, machine, model, weights.experts, weights.attention)
    done = run(trace, plan, costs, model, progress=progress, on_events=on_events)
    counts = [_counts(done, [phase], sized=_sized(trace, plan, model)) for phase in (0, 1)]
    total = _counts(done, [0, 1], sized=_sized(trace, plan, model))
    time = None if machine is None or costs is None else _time(done, costs, machine, model)
    best = _bounds(trace, plan, costs, model, done) if bounds else None
    warnings = _warnings(trace, done, costs)
    return Result(
        **msgspec.structs.asdict(total),
        phases=PhaseCounts(prefill=counts[0], decode=counts[1]),
        time=time,
        bounds=best,
        warnings=warnings,
        provenance=_provenance(trace, plan, machine, model),
    )


def run(
    trace: Trace,
    plan: Plan,
    costs: Costs | None = None,
    shape: ModelShape | None = None,
    *,
    progress: Callable[[int], object] | None = None,
    on_events: Callable[[Demand, Events], object] | None = None,
) -> Replayed:
    """The pass that `replay` sums up: decisions, and their timeline if `costs` are given."""
    manifest = trace.manifest
    sizes = stored_expert_bytes(manifest, shape, plan.weights.experts)
    spec = cache_spec(manifest.experts_per_layer, sizes, plan)
    bytes_of = np.asarray(sizes or [0] * trace.layers, np.int64)
    slots = sum(min(c, spec.layers * spec.experts) for c in spec.capacity) + spec.staging + 1
    done = Replayed()
    if costs is not None:
        done.timeline = Timeline(costs, slots, spec.experts)
        starts = step_starts(trace.step)
        context = np.add.reduceat(trace.position.astype(np.int64) + 1, starts[:-1])
    phases, ends = [], []
    for demand, events in iter_decisions(trace, spec):
        step = events.visit // demand.layers - demand.first_step
        phase = demand.phase[step]
        np.add.at(done.kinds, (phase, events.kind), 1)
        copied = (events.kind == LOAD) | (events.kind == STREAM) | (events.kind == PREFETCH)
        layer = events.expert // spec.experts
        np.add.at(done.loaded, phase[copied], bytes_of[layer[copied]])
        np.add.at(done.tokens, demand.phase, demand.step_tokens)
        if costs is not None:
            demanded = copied & (events.kind != PREFETCH)
            np.add.at(done.copy_ns, phase[demanded], costs.copy_ns[layer[demanded]])
        if done.timeline is not None:
            first, last = demand.first_step, demand.first_step + demand.steps
            ends.append(done.timeline.run(demand, events, context[first:last]))
        phases.append(demand.phase)
        if on_events is not None:
            on_events(demand, events)
        if progress is not None:
            progress(int(demand.step_tokens.sum()))
    done.phase = np.concatenate(phases)
    if ends:
        done.visit_end = np.concatenate(ends)
        done.step_ns = np.diff(done.visit_end[trace.layers - 1 :: trace.layers], prepend=0)
    return done


def _sized(trace: Trace, plan: Plan, shape: ModelShape | None) -> bool:
    return bool(stored_expert_bytes(trace.manifest, shape, plan.weights.experts))


def _counts(done: Replayed, phases: list[int], *, sized: bool) -> Counts:
    kinds = done.kinds[phases].sum(axis=0)
    hits = int(kinds[: HIT_PREFETCHED + 1].sum())
    misses = int(kinds[LOAD] + kinds[STREAM])
    return Counts(
        tokens=int(done.tokens[phases].sum()),
        lookups=hits + misses,
        hits=hits,
        misses=misses,
        hit_ratio=hits / (hits + misses) if hits + misses else 0.0,
        hits_by=HitsBy(cache=int(kinds[0]), pinned=int(kinds[1]), prefetch=int(kinds[2])),
        loads=int(kinds[LOAD]),
        streams=int(kinds[STREAM]),
        prefetches=int(kinds[PREFETCH]),
        bytes_loaded=int(done.loaded[phases].sum()) if sized else None,
    )


def _time(done: Replayed, costs: Costs, machine: HardwareProfile, shape: ModelShape | None) -> Time:
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
        compute_s=spent["dense"] + spent["experts"],
        overhead_s=spent["overhead"],
        stall_s={cause: spent[cause] for cause in CAUSES[3:]},
        link_utilisation=done.timeline.link_busy_ns * costs.scale / 1e9 / total if total else 0.0,
        prefetches={"useful": int(used[USEFUL]), "late": int(used[LATE]), "wasted": int(used[WASTED])},
    )


def _bounds(trace: Trace, plan: Plan, costs: Costs | None, shape: ModelShape | None, done: Replayed) -> Bounds:
    """Belady's hits at the plan's capacity, and the two times that bound every policy."""
    clairvoyant = msgspec.structs.replace(
        plan, eviction=EvictionPlan(policy="belady-bypass"), prefetch=PrefetchPlan(staging=plan.prefetch.staging)
    )
    best = run(trace, clairvoyant, shape=shape) if costs is None else run(trace, clairvoyant, costs, shape)
    hits = int(best.kinds[:, : HIT_PREFETCHED + 1].sum())
    lookups = hits + int(best.kinds[:, LOAD].sum() + best.kinds[:, STREAM].sum())
    link = compute = None
    tokens = int(done.tokens[DECODE])
    if costs is not None and done.timeline is not None and tokens:
        copies = float(best.copy_ns[DECODE]) * costs.scale
        work = float(done.timeline.spent[DECODE, :3].sum()) * costs.scale
        link = tokens / (copies / 1e9) if copies else None
        compute = tokens / (work / 1e9) if work else None
    known = [bound for bound in (link, compute) if bound is not None]
    return Bounds(
        hit_ratio=hits / lookups if lookups else 0.0,
        link_tokens_per_second=link,
        compute_tokens_per_second=compute,
        best_tokens_per_second=min(known) if known else None,
    )


def _warnings(trace: Trace, done: Replayed, costs: Costs | None) -> list[str]:
    warnings = []
    if not trace.manifest.complete:
        warnings.append("the trace is incomplete: its recording did not finish")
    if trace.manifest.source == "synthetic":
        warnings.append("the trace is synthetic: hit ratios say nothing about a real model")
    if done.tokens[DECODE] == 0:
        warnings.append("the trace has no decode steps: no tokens per second")
    return warnings + ([] if costs is None else list(costs.notes))


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
        "plan": plan.to_dict(),
        "hardware": None if machine is None else msgspec.to_builtins(machine),
        "model_shape": None if shape is None else shape.name,
    }
