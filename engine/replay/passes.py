"""One pass over a trace: a plan's decisions counted and, if costs are given, timed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from engine.decisions.run import cache_spec, iter_decisions
from engine.plan.plan import Plan
from engine.shapes import ModelShape
from engine.simulator.costs import Costs, stored_expert_bytes
from engine.simulator.timeline import CAUSES, Timeline
from policies.cache import CacheSpec
from policies.events import BYPASS, KEY_MASK, KIND_SHIFT, KINDS, LOAD, PREFETCH, Events
from tracekit import Trace
from tracekit.demand import Demand, step_starts
from tracekit.errors import CapacityError
from tracekit.manifest import Manifest

DECODE = 1


@dataclass
class Replayed:
    """A replay's sums and, if timed, its course (unscaled).

    By phase: `kinds` [2, kinds] events, `loaded` [2] bytes, `tokens` [2], `copy_ns` [2] what demand loads take of the
    link at least. By step: `phase` [steps], `step_tokens` [steps], `step_ns` [steps] i64 and its parts `spent`
    [steps, causes]; by visit: `visit_end` [visits] i64.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.zeros((2, KINDS), np.int64))
    loaded: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    copy_ns: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    phase: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    visit_end: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    step_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    step_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    spent: np.ndarray = field(default_factory=lambda: np.zeros((0, len(CAUSES)), np.int64))
    timeline: Timeline | None = None


def run(
    trace: Trace,
    plan: Plan,
    costs: Costs | None = None,
    shape: ModelShape | None = None,
    *,
    progress: Callable[[int], object] | None = None,
    on_events: Callable[[Demand, Events], object] | None = None,
    timed: bool = True,
    reshape: Callable[[Demand], Demand] | None = None,
    respec: Callable[[CacheSpec], CacheSpec] | None = None,
    rewrite: Callable[[Events], Events] | None = None,
    log: range | None = None,
) -> Replayed:
    """Decide `plan` on `trace`; with `costs`, also time it unless `timed` is False.

    Args:
        shape: sizes experts as this model's; None as the trace's own.
        progress: called with the number of tokens of each finished piece.
        on_events: called with each piece's demand and decisions.
        reshape: replaces each piece's demand (for bounds).
        respec: replaces what the plan says of the cache (for regret).
        rewrite: replaces each piece's decisions before they are counted and timed (for regret).
        log: the steps, by running number, whose course the timeline is to log.
    """
    spec, sizes = spec_of(trace.manifest, plan, shape)
    bytes_of = np.asarray(sizes or [0] * trace.layers, np.int64)
    if respec is not None:
        spec = respec(spec)
    done = Replayed()
    if costs is not None and timed:
        done.timeline = Timeline(costs, timed_slots(spec), spec.experts, log)
        context = context_of(trace)
    phases, tokens, times = [], [], []
    for demand, events in iter_decisions(trace, spec, reshape=reshape):
        if rewrite is not None:
            events = rewrite(events)
        np.add.at(done.tokens, demand.phase, demand.step_tokens)
        tally(
            events.code,
            events.start,
            (spec.layers, spec.experts),
            demand.phase,
            bytes_of,
            bytes_of * 0 if costs is None else costs.least_link_ns,
            done.kinds,
            done.loaded,
            done.copy_ns,
        )
        if done.timeline is not None:
            first, last = demand.first_step, demand.first_step + demand.steps
            times.append(done.timeline.run(demand, events, context[first:last]))
        phases.append(demand.phase)
        tokens.append(demand.step_tokens)
        if on_events is not None:
            on_events(demand, events)
        if progress is not None:
            progress(int(demand.step_tokens.sum()))
    done.phase, done.step_tokens = np.concatenate(phases), np.concatenate(tokens)
    if times:
        done.visit_end = np.concatenate([piece.visit_end for piece in times])
        done.spent = np.concatenate([piece.spent for piece in times])
        done.step_ns = np.diff(done.visit_end[trace.layers - 1 :: trace.layers], prepend=0)
    return done


def spec_of(manifest: Manifest, plan: Plan, shape: ModelShape | None) -> tuple[CacheSpec, list[int]]:
    """What `plan` means for the trace's model at the sizes of `shape`, and the bytes of an expert of each layer.

    Without sizes the list is empty. Raises CapacityError where a capacity for all layers cannot be told.
    """
    sizes = stored_expert_bytes(manifest, shape, plan.weights.experts)
    spec = cache_spec(manifest.experts_per_layer, sizes, plan)
    absolute = not plan.capacity.per_layer and plan.capacity.unit != "share"
    if shape is not None and absolute and len(shape.moe_layers) != spec.layers:
        raise CapacityError(
            f"capacity {plan.cache.capacity!r} is for all layers, but the trace has {spec.layers} MoE layers and "
            f"{shape.name} has {len(shape.moe_layers)}: give a capacity per layer (4/layer, 250MiB/layer) or a share"
        )
    return spec, sizes


def timed_slots(spec: CacheSpec) -> int:
    """How many physical slots a timeline has to know."""
    return sum(min(c, spec.layers * spec.experts // len(spec.capacity)) for c in spec.capacity) + spec.staging + 1


def context_of(trace: Trace) -> np.ndarray:
    """Context tokens that each step's attention reads, over its tokens: i64 [steps]."""
    return np.add.reduceat(trace.position.astype(np.int64) + 1, step_starts(trace.step)[:-1])


@njit(cache=True, nogil=True)
def tally(code, start, shape, phases, bytes_of, ns_of, kinds, loaded, copy_ns):  # type: ignore[no-untyped-def]
    """Add up events by phase and kind, bytes copied, and the time that demand copies keep the link busy."""
    layers, experts = shape
    for visit in range(len(start) - 1):
        phase, layer = phases[visit // layers], visit % layers
        first, last = start[visit], start[visit + 1]
        while first < last:
            # Eight counters of eight bits in one register, emptied before any can overflow.
            stop = min(last, first + 255)
            counters = np.uint64(0)
            for e in range(first, stop):
                counters += np.uint64(1) << (np.uint64(code[e] >> KIND_SHIFT) << np.uint64(3))
            for kind in range(KINDS):
                kinds[phase, kind] += np.int64((counters >> np.uint64(8 * kind)) & np.uint64(255))
            demanded = np.int64((counters >> np.uint64(8 * LOAD)) & np.uint64(255))
            demanded += np.int64((counters >> np.uint64(8 * BYPASS)) & np.uint64(255))
            loaded[phase] += demanded * bytes_of[layer]
            copy_ns[phase] += demanded * ns_of[layer]
            if (counters >> np.uint64(8 * PREFETCH)) & np.uint64(255):
                for e in range(first, stop):
                    if code[e] >> KIND_SHIFT == PREFETCH:
                        loaded[phase] += bytes_of[(code[e] & KEY_MASK) // experts]
            first = stop
