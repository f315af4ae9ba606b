"""Advice: what a reader of a replay's result should know before believing or using it, one line each."""

import numpy as np

from engine.decisions.run import cache_spec
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.estimates import device_bytes
from engine.replay.passes import DECODE, Replayed
from engine.replay.result import Time
from engine.shapes import ModelShape
from engine.simulator.costs import Costs
from policies.events import DROP, EVICT, PREFETCH
from tracekit import Trace
from tracekit.stats.independence import looks_independent

FEW_TOKENS = 64
SATURATED = 0.95
DOES_NOT_FIT = "the plan does not fit"


def advice(
    trace: Trace,
    plan: Plan,
    done: Replayed,
    sizes: list[int],
    costs: Costs | None,
    time: Time | None,
    *,
    independent: bool | None = None,
) -> list[str]:
    """Warnings about the trace, the capacity and the link. `sizes`: bytes of an expert per layer, empty if unknown.

    `independent`: whether the routing looks so, where that is known already.
    """
    warnings = [] if trace.batching is None else list(trace.batching.warnings)
    if not trace.manifest.complete:
        warnings.append("the trace is incomplete: its recording did not finish")
    if trace.manifest.source == "synthetic":
        warnings.append("the trace is synthetic: hit ratios say nothing about a real model")
    tokens = int(done.tokens[DECODE])
    if tokens == 0:
        warnings.append("the trace has no decode steps: no tokens per second")
    elif tokens < FEW_TOKENS:
        warnings.append(f"only {tokens} decode tokens: the filling of the cache weighs more than the policy")
    if looks_independent(trace) if independent is None else independent:
        warnings.append("routing looks independent from token to token: no policy can gain from recency in it")
    warnings += [] if costs is None else list(costs.notes)
    warnings += cycle_warnings(trace, plan, done, sizes)
    if time is not None and time.link_utilisation > SATURATED and plan.prefetch.predictor != "none":
        warnings.append(
            f"the link is busy more than {100 * SATURATED:.0f} % of the time: prefetches can only delay demand copies"
        )
    return warnings


def cycle_warnings(trace: Trace, plan: Plan, done: Replayed, sizes: list[int]) -> list[str]:
    """A cache for all layers that is smaller than what one decode token demands over all of them: LRU hardly hits."""
    spec = cache_spec(trace.manifest.experts_per_layer, sizes, plan)
    steps = int((done.phase == DECODE).sum())
    if len(spec.capacity) > 1 or steps == 0:
        return []
    lookups = int(done.kinds[DECODE].sum() - done.kinds[DECODE, [PREFETCH, EVICT, DROP]].sum())
    cycle = lookups / steps * float(np.mean(spec.size[spec.size > 0]))
    if spec.capacity[0] >= cycle:
        return []
    unit = "bytes" if plan.capacity.unit == "bytes" else "experts"
    return [
        f"capacity {plan.cache.capacity!r} is below the token cycle ({cycle:.0f} {unit}): layers run one after the "
        "other, so a global LRU hits next to nothing; give a capacity per layer, or a policy that knows of layers"
    ]


def fit_warnings(
    trace: Trace, plan: Plan, machine: HardwareProfile, shape: ModelShape | None, costs: Costs
) -> list[str]:
    """Whether the plan's slots, and the dense weights if a shape tells their size, fit into the device's memory."""
    largest = max(costs.expert_bytes)
    spec = cache_spec(trace.manifest.experts_per_layer, costs.expert_bytes, plan)
    needed = device_bytes(trace, plan, costs, shape)
    warnings = []
    if needed > machine.device.memory_bytes:
        warnings.append(
            f"{DOES_NOT_FIT}: experts and dense weights take {needed / 2**30:.1f} GiB, {machine.name} has "
            f"{machine.device.memory_bytes / 2**30:.1f} GiB"
        )
    if sum(spec.capacity) > 0 and max(spec.capacity) < int(spec.size.min()):
        warnings.append(f"capacity {plan.cache.capacity!r} holds no expert: each takes {largest} bytes")
    return warnings
