"""Advice: what a reader of a replay's result should know before believing or using it, one line each."""

from typing import Any, NamedTuple

import numpy as np

from engine.hardware.engine_profile import CALIBRATED
from engine.plan.tables import PrefetchPlan
from engine.replay.memory import device_memory, fits
from engine.replay.passes import Replayed, run
from engine.replay.result import Time
from engine.replay.setting import Setting
from policies.events import ADMIT
from tracekit.caution import Caution, routing_cautions
from tracekit.rows import DECODE
from tracekit.stats.independence import looks_independent
from tracekit.trace import Trace

SATURATED = 0.95


class DecodeWork(NamedTuple):
    """What a replay decoded."""

    steps: int
    tokens: int
    lookups: int

    @classmethod
    def of(cls, done: Replayed) -> "DecodeWork":
        lookups = done.kinds[DECODE, : ADMIT + 1].sum()
        return cls(int((done.phase == DECODE).sum()), int(done.tokens[DECODE]), int(lookups))


def advice(
    trace: Trace,
    setting: Setting,
    decode: DecodeWork,
    time: Time | None = None,
    *,
    independent: bool | None = None,
) -> list[Caution]:
    """Warnings about the trace, the capacity and the link.

    `independent`: whether the routing looks so, where that is known already.
    """
    warnings = [] if trace.batching is None else [Caution("batched", text) for text in trace.batching.warnings]
    warnings += routing_cautions(
        complete=trace.manifest.complete,
        source=trace.manifest.source,
        decode_tokens=decode.tokens,
        independent=looks_independent(trace) if independent is None else independent,
    )
    warnings += [] if setting.costs is None else [Caution("costs", text) for text in setting.costs.notes]
    warnings += cycle_warnings(setting, decode)
    if time is not None and time.largest_part == "overhead" and time.engine != CALIBRATED:
        text = (
            f"the largest part of the time is what {time.engine} is assumed to take for each layer and step, neither "
            "copies nor arithmetic: --engine names another, and the hardware's own bound is without it"
        )
        warnings.append(Caution("mostly overhead", text))
    return warnings


def prefetch_warnings(
    trace: Trace, setting: Setting, done: Replayed, time: Time, *, warm_up: int = 0, **how: Any
) -> list[Caution]:
    """Whether prefetching makes a plan slower whose link is busy nearly always: the same plan is replayed without it.

    `done` is the plan's own pass, without the `warm_up` steps that do not count; `how` is handed to
    `engine.replay.passes.run`: steps, demands.
    """
    if setting.plan.prefetch.predictor == "none" or time.link_utilisation <= SATURATED:
        return []
    plan = setting.plan.replace(prefetch=PrefetchPlan(staging=setting.plan.prefetch.staging))
    bare = Setting.of(
        setting.manifest, plan, setting.machine, setting.shape, stored=setting.stored, reshape=setting.reshape
    )
    (without,) = (one.counted(warm_up) for one in run(trace, bare.spec, [bare.target], warm_up=warm_up, **how))
    chosen = done.phase == DECODE if (done.phase == DECODE).any() else np.ones(len(done.phase), bool)
    slower = float(done.step_ns[chosen].sum()) / float(without.step_ns[chosen].sum()) - 1
    if slower <= 0:
        return []
    text = (
        f"prefetching makes this plan slower, by {100 * slower:.1f} %: the link is busy more than "
        f"{100 * SATURATED:.0f} % of the time, and copies ahead of demand delay it"
    )
    return [Caution("link busy", text)]


def first_order_caution(policy: str) -> Caution:
    """What to know of a plan that alters routing, replayed on recorded gates."""
    text = (
        f"routing policy {policy!r}: a first-order estimate, with the gates' numbers as recorded; the bounds beside it "
        "are of unaltered routing, and what it costs in quality is measured in the engine (tracekit quality)"
    )
    return Caution("first order", text)


TIERED = Caution(
    "precision tiers",
    "experts in two formats: a first-order estimate, with the gates' numbers as recorded, which low copies would alter "
    "(a trace that was recorded with this plan is replayed exactly); there are no bounds and no regret, and what it "
    "costs in quality is measured in the engine (tracekit quality)",
)
"""What to know of a plan whose experts have two copies."""


def cycle_warnings(setting: Setting, decode: DecodeWork) -> list[Caution]:
    """A cache for all layers that is smaller than what one decode token demands over all of them: LRU hardly hits."""
    spec, plan = setting.spec, setting.plan
    if len(spec.capacity) > 1 or decode.steps == 0:
        return []
    cycle = decode.lookups / decode.steps * float(np.mean(spec.size[spec.size > 0]))
    if spec.capacity[0] + (0 if spec.low is None else spec.low.capacity[0]) >= cycle:
        return []
    unit = "bytes" if plan.capacity.unit == "bytes" else "experts"
    text = (
        f"capacity {plan.cache.capacity!r} is below the token cycle ({cycle:.0f} {unit}): layers run one after the "
        "other, so a global LRU hits next to nothing; give a capacity per layer, or a policy that knows of layers"
    )
    return [Caution("below the token cycle", text)]


def fit_warnings(setting: Setting) -> list[Caution]:
    """Whether what the plan keeps on the device fits into the machine's memory."""
    plan, spec, machine = setting.plan, setting.spec, setting.machine
    assert machine is not None
    largest, memory = max(setting.sizes), device_memory(setting)
    warnings = []
    if not fits(setting):
        sizes = memory._asdict().items()
        parts = ", ".join(f"{name.replace('_', ' ')} {size / 2**30:.1f}" for name, size in sizes if size)
        room = machine.device.memory_bytes / 2**30
        text = f"the plan does not fit: it takes {memory.total / 2**30:.1f} GiB ({parts}), {machine.name} has "
        warnings.append(Caution("does not fit", f"{text}{room:.1f} GiB; so it has no tokens/s"))
    if sum(spec.capacity) > 0 and max(spec.capacity) < int(spec.size.min()):
        text = f"capacity {plan.cache.capacity!r} holds no expert: each takes {largest} bytes"
        warnings.append(Caution("holds no expert", text))
    return warnings
