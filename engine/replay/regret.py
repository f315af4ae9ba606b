"""Regret: what each hindrance costs, as differences between replays that lose one hindrance after the other.

The total is the time of the plan's steps minus that of computing alone: everything on the device from the start, no
overhead. Between the two stand replays of the same routing on the same machine, each a little less ideal:

    computing alone | + overheads | + every expert copied once | + capacity, clairvoyantly used | + the plan's policy
    | + prefetching whose copies cost nothing | + what those copies cost | + misses served otherwise, if they are
    = the plan

Each part is the difference of neighbours, so the parts add up to the total exactly. All but the last are of the plan
that copies every miss, and keeps it if there is room: the host would make some of these replays faster for missing
more. A part may be negative: prefetching and the host are there to win time, and clairvoyant decisions save copies, not
always time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from engine.hardware.engine_profile import NOTHING
from engine.plan.plan import Plan
from engine.replay.bounds import clairvoyant, copying, without_prefetching
from engine.replay.passes import Replayed, Target, run
from engine.replay.result import Regret
from engine.replay.setting import Setting, costs_without_predictors
from engine.simulator.costs import Costs
from engine.simulator.timeline import CAUSES
from policies.cache_spec import CacheSpec
from policies.events import ADMIT, HOST, KIND_SHIFT, PREFETCH, Events
from tracekit.demand import Demand
from tracekit.rows import DECODE
from tracekit.trace import Trace

LATE = CAUSES.index("late_prefetch")


def regret_passes(plan: Plan) -> int:
    """How many replays a regret takes, beside the plan's own."""
    return (4 if plan.prefetch.predictor == "none" else 6) + (not plan.keeps_misses)


def find_regret(
    trace: Trace,
    setting: Setting,
    done: Replayed,
    progress: Callable[[int], object] | None = None,
    *,
    warm_up: int = 0,
) -> Regret:
    """The regret of the setting's plan on its machine, over its decode steps (all steps if none is).

    `done` is the plan's own pass, timed and kept, all of it; its first `warm_up` steps do not count.
    """
    plan, spec, machine = setting.plan, copying(setting.spec), setting.machine
    assert setting.costs is not None and machine is not None
    costs = setting.costs._replace(cpu=0)
    counted = np.arange(len(done.phase)) >= warm_up
    decoding = counted & (done.phase == DECODE)
    chosen = decoding if decoding.any() else counted

    def scaled(nanoseconds: int) -> int:
        return round(nanoseconds * costs.scale)

    def total(finished: Replayed) -> int:
        return scaled(int(finished.step_ns[chosen].sum()))

    def replayed(by: CacheSpec, on: Costs, **how: Any) -> Replayed:
        (finished,) = run(trace, by, [Target(costs=on)], progress=progress, **how)
        return finished

    fused = machine.fused and msgspec.structs.replace(machine.fused, per_call_ns=0, per_expert_ns=0)
    idle = machine.with_engine(msgspec.structs.replace(machine.engine, overhead=NOTHING, fused=fused))
    effortless = costs_without_predictors(setting.manifest, plan, idle, setting.shape)._replace(cpu=0)
    unlimited = of_any_size(spec, sum(setting.manifest.experts_per_layer))
    steps = [
        total(replayed(all_resident(unlimited), effortless)),
        total(replayed(all_resident(unlimited), costs)),
        total(replayed(unlimited, costs)),
        total(replayed(clairvoyant(spec), costs)),
    ]
    late = polluted = 0
    bare = done if plan.keeps_misses else replayed(spec, costs, keep=True)
    if plan.prefetch.predictor != "none":
        before, after = Misses(chosen), Misses(chosen)
        steps.append(total(replayed(without_prefetching(spec), costs, on_events=before.add)))
        steps.append(total(replayed(spec, costs, rewrite=without_prefetches, on_events=after.add)))
        polluted = scaled(int(costs.copy_ns[after.layers_beyond(before)].sum()))
        late = scaled(int(bare.spent[chosen, LATE].sum()))
    else:
        steps += [total(bare)] * 2
    steps += [total(bare), total(done)]
    overhead, compulsory, capacity, policy, prefetch, copies, lane = np.diff(steps).tolist()
    return Regret(
        total_ns=steps[-1] - steps[0],
        overhead_ns=overhead,
        compulsory_ns=compulsory,
        capacity_ns=capacity,
        policy_ns=policy,
        prefetch_ns=prefetch - polluted,
        pollution_ns=polluted,
        late_prefetch_ns=late,
        prefetch_copies_ns=copies - late,
        lane_ns=lane,
        steps=int(chosen.sum()),
    )


def of_any_size(spec: CacheSpec, experts: int) -> CacheSpec:
    """The cache with a slot for each of the model's experts, empty at the start, nothing prefetched."""
    best = replace(without_prefetching(spec), eviction="lru", eviction_parameters=None, estimator=None, pinned=())
    return replace(best, capacity=(experts,), size=np.ones_like(spec.size))


def all_resident(spec: CacheSpec) -> CacheSpec:
    """The cache with every expert in it from the start, for ever."""
    return replace(spec, pinned=tuple(range(spec.layers * spec.experts)), capacity=tuple(_members(spec)))


def _members(spec: CacheSpec) -> list[int]:
    """What all experts of each capacity group take."""
    return [int(part.sum()) for part in np.split(spec.size, len(spec.capacity))]


def without_prefetches(events: Events) -> Events:
    """The decisions with every prefetched expert simply there: its copy takes nothing, of the link or of the host."""
    kept = events.code >> KIND_SHIFT != PREFETCH
    before = np.concatenate([[0], np.cumsum(kept)])
    return Events(events.code[kept], before[events.start], events.first_visit, events.orderly)


class Misses:
    """The missed lookups of a replay's `chosen` steps (bool [steps]), as numbers that tell visit and expert."""

    def __init__(self, chosen: np.ndarray) -> None:
        self._chosen = chosen
        self._found: list[np.ndarray] = []
        self._keys = self._experts = 1

    def add(self, demand: Demand, events: Events) -> None:
        """Take note of one piece."""
        self._experts, self._keys = demand.experts, demand.layers * demand.experts
        missed = (events.kind >= HOST) & (events.kind <= ADMIT)
        visit, expert = events.visit[missed], events.expert[missed]
        inside = self._chosen[visit // demand.layers]
        self._found.append(visit[inside] * self._keys + expert[inside])

    def layers_beyond(self, other: "Misses") -> np.ndarray:
        """The layer of each lookup that missed here and not in `other`."""
        more = np.setdiff1d(np.concatenate(self._found), np.concatenate(other._found), assume_unique=True)
        return more % self._keys // self._experts
