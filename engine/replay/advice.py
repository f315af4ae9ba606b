"""Advice: what a reader of a replay's result should know before believing or using it, one line each."""

from typing import NamedTuple

import numpy as np

from engine.replay.estimates import device_bytes
from engine.replay.passes import Replayed
from engine.replay.result import Time
from engine.replay.setting import Setting
from policies.events import BYPASS
from tracekit.rows import DECODE
from tracekit.stats.independence import looks_independent
from tracekit.trace import Trace

FEW_TOKENS = 64
SATURATED = 0.95
DOES_NOT_FIT = "the plan does not fit"


class DecodeWork(NamedTuple):
    """What a replay decoded."""

    steps: int
    tokens: int
    lookups: int

    @classmethod
    def of(cls, done: Replayed) -> "DecodeWork":
        lookups = done.kinds[DECODE, : BYPASS + 1].sum()
        return cls(int((done.phase == DECODE).sum()), int(done.tokens[DECODE]), int(lookups))


def advice(
    trace: Trace,
    setting: Setting,
    decode: DecodeWork,
    time: Time | None = None,
    *,
    independent: bool | None = None,
) -> list[str]:
    """Warnings about the trace, the capacity and the link.

    `independent`: whether the routing looks so, where that is known already.
    """
    warnings = [] if trace.batching is None else list(trace.batching.warnings)
    if not trace.manifest.complete:
        warnings.append("the trace is incomplete: its recording did not finish")
    if trace.manifest.source == "synthetic":
        warnings.append("the trace is synthetic: hit ratios say nothing about a real model")
    if decode.tokens == 0:
        warnings.append("the trace has no decode steps: no tokens per second")
    elif decode.tokens < FEW_TOKENS:
        warnings.append(f"only {decode.tokens} decode tokens: the filling of the cache weighs more than the policy")
    if looks_independent(trace) if independent is None else independent:
        warnings.append("routing looks independent from token to token: no policy can gain from recency in it")
    warnings += [] if setting.costs is None else list(setting.costs.notes)
    warnings += cycle_warnings(setting, decode)
    if time is not None and time.link_utilisation > SATURATED and setting.plan.prefetch.predictor != "none":
        warnings.append(
            f"the link is busy more than {100 * SATURATED:.0f} % of the time: prefetches can only delay demand copies"
        )
    return warnings


def cycle_warnings(setting: Setting, decode: DecodeWork) -> list[str]:
    """A cache for all layers that is smaller than what one decode token demands over all of them: LRU hardly hits."""
    spec, plan = setting.spec, setting.plan
    if len(spec.capacity) > 1 or decode.steps == 0:
        return []
    cycle = decode.lookups / decode.steps * float(np.mean(spec.size[spec.size > 0]))
    if spec.capacity[0] >= cycle:
        return []
    unit = "bytes" if plan.capacity.unit == "bytes" else "experts"
    return [
        f"capacity {plan.cache.capacity!r} is below the token cycle ({cycle:.0f} {unit}): layers run one after the "
        "other, so a global LRU hits next to nothing; give a capacity per layer, or a policy that knows of layers"
    ]


def fit_warnings(setting: Setting) -> list[str]:
    """Whether the plan's slots, and the dense weights if a shape tells their size, fit into the machine's memory."""
    plan, spec, machine = setting.plan, setting.spec, setting.machine
    assert machine is not None
    largest, needed = max(setting.sizes), device_bytes(setting)
    warnings = []
    if needed > machine.device.memory_bytes:
        warnings.append(
            f"{DOES_NOT_FIT}: experts and dense weights take {needed / 2**30:.1f} GiB, {machine.name} has "
            f"{machine.device.memory_bytes / 2**30:.1f} GiB"
        )
    if sum(spec.capacity) > 0 and max(spec.capacity) < int(spec.size.min()):
        warnings.append(f"capacity {plan.cache.capacity!r} holds no expert: each takes {largest} bytes")
    return warnings
