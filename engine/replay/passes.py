"""One decision pass over a trace, counted and timed as on any number of machines.

Decisions look at no clock, so they are taken once, whatever they are then timed on. A replay is the case of one target;
studies and validations call the same function.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numba import njit

from engine.decisions.run import OnEnd, OnSwitch, iter_decisions
from engine.replay.copies import COUNTED, NO_COPIES, tally_copies
from engine.replay.given_decisions import GivenDecisions
from engine.simulator.costs import Costs
from engine.simulator.limits import Work, check_bytes, check_times
from engine.simulator.timeline import CAUSES, WASTED, Timeline
from policies.cache_spec import CacheSpec, slots_of
from policies.events import ADMIT, HIT_PREFETCHED, KEY_MASK, KIND_SHIFT, KINDS, LOAD, PREFETCH, Events
from policies.tiered_cache import TIERS
from tracekit.demand import Demand, step_starts
from tracekit.rows import DECODE
from tracekit.trace import Trace


@dataclass(frozen=True, slots=True)
class Target:
    """What decisions are counted and timed as: bytes of an expert of each layer (none: unknown), a machine if any."""

    sizes: tuple[int, ...] = ()
    costs: Costs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The steps of a trace: `starts` [steps + 1] rows, `phase` u8 [steps], `context` i64 [steps] as a step's attention
    reads it, summed over its tokens; `longest` is the most of one token, `longest_prompt` of one token of a prompt."""

    starts: np.ndarray
    phase: np.ndarray
    context: np.ndarray
    longest: int
    longest_prompt: int

    @classmethod
    def of(cls, trace: Trace) -> "Steps":
        starts = step_starts(trace.step)
        context = trace.position.astype(np.int64) + 1
        phase = trace.phase[starts[:-1]]
        longest = np.maximum.reduceat(context, starts[:-1])
        return cls(
            starts,
            phase,
            np.add.reduceat(context, starts[:-1]),
            int(longest.max(initial=0)),
            int(longest[phase != DECODE].max(initial=0)),
        )

    @property
    def largest(self) -> int:
        """Tokens of the largest step."""
        return int(np.diff(self.starts).max(initial=0))

    @property
    def sequences(self) -> int:
        """Sequences at once: the tokens of the largest decode step; 1 where nothing is decoded."""
        return int(np.diff(self.starts)[self.phase == DECODE].max(initial=1))


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A finished pass. Times are those of the trace's layers (`Costs.scale` turns them into the model's).

    By step: `phase` u8 [steps], `step_tokens` i32 [steps], `step_kinds` i64 [steps, kinds] events, `step_bytes` i64
    [steps] copied. `demand_loads` i64 [2, layers] by phase. If timed, `timeline` holds the sums and `step_ns` i64
    [steps] the times; if kept, also `spent` [steps, causes] and `visit_end` [visits], else these are empty. Where
    experts have two copies `step_copies` i64 [steps, tiers, what] counts them (engine.replay.copies), with the bytes of
    the first of the targets.
    """

    phase: np.ndarray
    step_tokens: np.ndarray
    step_kinds: np.ndarray
    step_bytes: np.ndarray
    demand_loads: np.ndarray
    step_ns: np.ndarray
    spent: np.ndarray
    visit_end: np.ndarray
    timeline: Timeline | None
    step_copies: np.ndarray = field(default_factory=lambda: NO_COPIES)

    @property
    def kinds(self) -> np.ndarray:
        """i64 [2, kinds]: events by phase."""
        return self._by_phase(self.step_kinds)

    @property
    def tokens(self) -> np.ndarray:
        """i64 [2]: tokens by phase."""
        return self._by_phase(self.step_tokens)

    @property
    def loaded(self) -> np.ndarray:
        """i64 [2]: bytes copied by phase."""
        return self._by_phase(self.step_bytes)

    @property
    def hit_ratio(self) -> float:
        """Hits over lookups, prefill and decode together."""
        hits, lookups = (int(self.step_kinds[:, : last + 1].sum()) for last in (HIT_PREFETCHED, ADMIT))
        return hits / lookups if lookups else 0.0

    def counted(self, warm_up: int) -> "Replayed":
        """The same of the steps behind the first `warm_up`: what `run` with that warm-up counts."""
        rest = slice(warm_up, None)
        layers = self.demand_loads.shape[1]
        return replace(
            self,
            phase=self.phase[rest],
            step_tokens=self.step_tokens[rest],
            step_kinds=self.step_kinds[rest],
            step_bytes=self.step_bytes[rest],
            step_ns=self.step_ns[rest],
            spent=self.spent[rest],
            visit_end=self.visit_end[warm_up * layers :],
            step_copies=self.step_copies[rest],
        )

    def _by_phase(self, of_step: np.ndarray) -> np.ndarray:
        decode = self.phase == DECODE
        return np.stack([of_step[~decode].sum(axis=0, dtype=np.int64), of_step[decode].sum(axis=0, dtype=np.int64)])


def run(
    trace: Trace,
    spec: CacheSpec,
    targets: Sequence[Target] = (Target(),),
    *,
    steps: Steps | None = None,
    demands: Iterable[Demand] | None = None,
    hints: Iterable[np.ndarray] | None = None,
    reshape: Callable[[Demand], Demand] | None = None,
    rewrite: Callable[[Events], Events] | None = None,
    given: GivenDecisions | None = None,
    warm_up: int = 0,
    progress: Callable[[int], object] | None = None,
    on_events: Callable[[Demand, Events], object] | None = None,
    on_switch: OnSwitch | None = None,
    on_end: OnEnd | None = None,
    keep: bool = False,
    log: range | None = None,
) -> list[Replayed]:
    """Decide by `spec` on `trace`, once; count and time the decisions as each of `targets`.

    Args:
        steps: the trace's, where they are at hand already.
        demands, hints, reshape: as `iter_decisions` takes them.
        rewrite: replaces each piece's decisions before they are counted and timed (for regret).
        given: decisions that somebody else made on the trace, in place of those by `spec`.
        warm_up: so many steps are decided and timed, but in no sum: not in `demand_loads`, nor in the timelines'. What
            is by step has them still; `Replayed.counted` leaves them out there, too.
        progress: called with the number of tokens of each finished piece.
        on_events: called with each piece's demand and decisions.
        on_switch, on_end: as `iter_decisions` takes them.
        keep: keep times by visit, and their causes by step: memory for every machine.
        log: the steps, by running number, whose course the timelines are to log.
    """
    steps = steps or Steps.of(trace)
    count = len(steps.phase)
    check_targets(trace, spec, targets, steps, None if given is None else given.rows)
    kinds, loads = np.zeros((count, KINDS), np.int64), np.zeros((2, spec.layers), np.int64)
    loaded = {target.sizes: np.zeros(count, np.int64) for target in targets}
    copies = np.zeros((count, len(TIERS), len(COUNTED)) if spec.low is not None else (0, 0, 0), np.int64)
    timings = [Timing(target.costs, spec, count, keep, log) if target.costs is not None else None for target in targets]
    decided = iter_decisions(
        trace, spec, reshape=reshape, demands=demands, hints=hints, on_switch=on_switch, on_end=on_end
    )
    for demand, events in decided if given is None else given.pieces(spec):
        if rewrite is not None:
            events = rewrite(events)
        for part, of_part in _halves(demand, events, warm_up):
            if part.first_step == warm_up > 0:
                loads[:] = 0
                for timing in timings:
                    if timing is not None:
                        timing.count_from_here()
            piece = slice(part.first_step, part.first_step + part.steps)
            counted, by_layer, by_tier = kinds[piece], loads, copies[piece]
            for sizes, of_step in loaded.items():
                events_of = (of_part.code, of_part.start, part.phase)
                if spec.low is not None:
                    tally_copies(*events_of, spec, sizes, counted, by_layer, of_step[piece], by_tier)
                else:
                    bytes_of = np.array(sizes or (0,) * spec.layers, np.int64)
                    tally(*events_of, spec.experts, bytes_of, counted, by_layer, of_step[piece])
                # The same whatever the sizes.
                counted, by_layer, by_tier = (np.zeros_like(one) for one in (counted, by_layer, by_tier))
            for timing in timings:
                if timing is not None:
                    timing.add(part, of_part, steps.context[piece])
        if on_events is not None:
            on_events(demand, events)
        if progress is not None:
            progress(int(demand.step_tokens.sum()))
    tokens = np.diff(steps.starts).astype(np.int32)
    untimed = {"step_ns": NO_TIMES, "spent": NO_CAUSES, "visit_end": NO_TIMES, "timeline": None}
    return [
        Replayed(
            phase=steps.phase,
            step_tokens=tokens,
            step_kinds=kinds,
            step_bytes=loaded[target.sizes],
            demand_loads=loads,
            step_copies=copies,
            **(untimed if timing is None else timing.times()),
        )
        for target, timing in zip(targets, timings, strict=True)
    ]


def _halves(demand: Demand, events: Events, step: int) -> list[tuple[Demand, Events]]:
    """The piece, cut before `step` where that is inside it."""
    at = step - demand.first_step
    if not 0 < at < demand.steps:
        return [(demand, events)]
    visit = at * demand.layers
    return [
        (demand.part(0, at), events.part(0, visit)),
        (demand.part(at, demand.steps), events.part(visit, demand.visits)),
    ]


def check_targets(
    trace: Trace, spec: CacheSpec, targets: Sequence[Target], steps: Steps, prefetched: int | None = None
) -> None:
    """Raise HardwareError or TraceError if the bytes or nanoseconds of a target could exceed what can be counted.

    `prefetched` is the most experts of a layer that are prefetched, where the `spec` does not say.
    """
    suggested = 0 if spec.prefetch == "none" else spec.count
    work = Work.of(np.diff(steps.starts), steps.context, trace.top_k, spec.experts, suggested)
    if prefetched is not None:
        work = replace(work, prefetched=prefetched)
    for target in targets:
        check_bytes(work, target.sizes)
        if target.costs is not None:
            check_times(work, target.costs)


NO_TIMES, NO_CAUSES = np.zeros(0, np.int64), np.zeros((0, len(CAUSES)), np.int64)


class Timing:
    """One machine's timeline and what is kept of it."""

    def __init__(self, costs: Costs, spec: CacheSpec, steps: int, keep: bool, log: range | None) -> None:
        self._timeline = Timeline(costs, timed_slots(spec), spec.experts, log)
        self._layers, self._keep, self._wrap = spec.layers, keep, spec.wrap
        self._step_end = np.zeros(steps, np.int64)
        self._spent = np.zeros((steps, len(CAUSES)), np.int64) if keep else NO_CAUSES
        self._visit_end = np.zeros(steps * spec.layers, np.int64) if keep else NO_TIMES

    def add(self, demand: Demand, events: Events, context: np.ndarray) -> None:
        """Time one piece."""
        timed = self._timeline.run(demand, events, context)
        first, last = demand.first_step, demand.first_step + demand.steps
        self._step_end[first:last] = timed.visit_end[self._layers - 1 :: self._layers]
        if self._keep:
            self._spent[first:last] = timed.spent
            self._visit_end[first * self._layers : last * self._layers] = timed.visit_end

    def count_from_here(self) -> None:
        """Sums begin here."""
        self._timeline.count_from_here()

    def times(self) -> dict[str, Any]:
        """The fields of `Replayed` that only a timed pass has."""
        step_ns = np.diff(self._step_end, prepend=0)
        if self._wrap:  # for a step that never came
            self._timeline.prefetches[WASTED] += self._timeline.unused
        return {"step_ns": step_ns, "spent": self._spent, "visit_end": self._visit_end, "timeline": self._timeline}


def timed_slots(spec: CacheSpec) -> int:
    """How many physical slots a timeline has to know."""
    if spec.low is not None:
        return slots_of(spec) + 1
    return sum(min(c, spec.layers * spec.experts // len(spec.capacity)) for c in spec.capacity) + spec.staging + 1


@njit(cache=True, nogil=True)
def tally(
    code: np.ndarray,
    start: np.ndarray,
    phases: np.ndarray,
    experts: int,
    bytes_of: np.ndarray,
    kinds: np.ndarray,
    loads: np.ndarray,
    loaded: np.ndarray,
) -> None:
    """Add up events by step and kind, demand loads by phase and layer, and bytes copied by step."""
    layers = len(bytes_of)
    for visit in range(len(start) - 1):
        step, layer = visit // layers, visit % layers
        first, last = start[visit], start[visit + 1]
        while first < last:
            # A counter of six bits for each kind in one register, emptied before any can overflow.
            stop = min(last, first + 63)
            counters = np.uint64(0)
            for e in range(first, stop):
                counters += np.uint64(1) << (np.uint64(code[e] >> KIND_SHIFT) * np.uint64(6))
            for kind in range(KINDS):
                kinds[step, kind] += np.int64((counters >> np.uint64(6 * kind)) & np.uint64(63))
            demanded = np.int64(0)
            for kind in range(LOAD, ADMIT + 1):
                demanded += np.int64((counters >> np.uint64(6 * kind)) & np.uint64(63))
            loads[phases[step], layer] += demanded
            loaded[step] += demanded * bytes_of[layer]
            if (counters >> np.uint64(6 * PREFETCH)) & np.uint64(63):
                for e in range(first, stop):
                    if code[e] >> KIND_SHIFT == PREFETCH:
                        loaded[step] += bytes_of[(code[e] & KEY_MASK) // experts]
            first = stop
