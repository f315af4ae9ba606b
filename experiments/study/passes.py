"""One decision pass, timed on any number of machines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.decisions.run import iter_decisions
from engine.replay.passes import DECODE, Replayed, context_of, tally, timed_slots
from engine.simulator.costs import Costs
from engine.simulator.timeline import Timeline
from policies.cache import CacheSpec
from policies.events import BYPASS, KEY_MASK, KIND_SHIFT, KINDS, LOAD
from tracekit import Trace
from tracekit.demand import Demand, step_starts


@dataclass(frozen=True, slots=True)
class Target:
    """What decisions are to be counted and timed as: bytes of an expert of each layer, and a machine if any."""

    sizes: tuple[int, ...]
    costs: Costs | None


@dataclass(frozen=True, slots=True)
class Course:
    """What every pass over one routing has in common. `starts` [steps + 1] rows; `context` [steps]; `phase` [steps].

    Of tokens in decode steps: `step` and `who` [decode tokens], the step and the place of the request in `requests`;
    `tokens` [requests] counts them.
    """

    starts: np.ndarray
    context: np.ndarray
    phase: np.ndarray
    step: np.ndarray
    who: np.ndarray
    requests: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> "Course":
        starts = step_starts(trace.step)
        phase = trace.phase[starts[:-1]]
        step = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        decode = phase[step] == DECODE
        requests, who = np.unique(trace.request[decode], return_inverse=True)
        return cls(starts, context_of(trace), phase, step[decode], who, requests, np.bincount(who))

    def shared(self, of_step: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """What each request has of `of_step` [steps], the tokens of a step sharing evenly: i64 [requests], rounded."""
        per_token = of_step / np.diff(self.starts)
        found: np.ndarray = np.rint(np.bincount(self.who, per_token[self.step]) * scale).astype(np.int64)
        return found

    def percentile(self, of_step: np.ndarray, share: float, scale: float = 1.0) -> np.ndarray:
        """The percentile of `of_step` over each request's decode tokens: i64 [requests], linear as numpy's, rounded."""
        values = of_step[self.step]
        values = values[np.lexsort((values, self.who))] * scale
        place = share * (self.tokens - 1)
        low = np.floor(place).astype(np.int64)
        first = np.cumsum(self.tokens) - self.tokens
        high = np.minimum(low + 1, self.tokens - 1)
        between = (place - low) * (values[first + high] - values[first + low])
        found: np.ndarray = np.rint(values[first + low] + between).astype(np.int64)
        return found


def time_all(
    trace: Trace,
    spec: CacheSpec,
    targets: Sequence[Target],
    course: Course,
    demands: Iterable[Demand] | None = None,
    on_piece: Callable[[], object] | None = None,
    hints: Iterable[np.ndarray] | None = None,
) -> list[tuple[Replayed, np.ndarray]]:
    """Decide once; count and time as each of `targets`. For each: the replay, and the bytes of each step [steps].

    `demands` and `hints` are as `iter_decisions` takes them.

    `visit_end` and `spent` by step are left out of the replays: they would take memory for every machine.
    """
    steps = len(course.phase)
    kinds = np.zeros((steps, KINDS), np.int64)
    loaded = {target.sizes: np.zeros(steps, np.int64) for target in targets}
    timelines = [
        None if target.costs is None else Timeline(target.costs, timed_slots(spec), spec.experts) for target in targets
    ]
    ends = [np.zeros(steps, np.int64) for _ in targets]
    nothing = np.zeros(spec.layers, np.int64)
    for demand, events in iter_decisions(trace, spec, demands=demands, hints=hints):
        first, last = demand.first_step, demand.first_step + demand.steps
        place = np.arange(demand.steps)
        unused = np.zeros(demand.steps, np.int64)
        counted = kinds[first:last]
        for sizes, of_step in loaded.items():
            bytes_of = np.asarray(sizes or nothing, np.int64)
            shape = (spec.layers, spec.experts)
            tally(events.code, events.start, shape, place, bytes_of, nothing, counted, of_step[first:last], unused)
            counted = np.zeros_like(counted)  # kinds are the same for every size
        for timeline, end in zip(timelines, ends, strict=True):
            if timeline is not None:
                timed = timeline.run(demand, events, course.context[first:last])
                end[first:last] = timed.visit_end[spec.layers - 1 :: spec.layers]
        if on_piece is not None:
            on_piece()
    found = []
    for target, timeline, end in zip(targets, timelines, ends, strict=True):
        of_step = loaded[target.sizes]
        done = Replayed(phase=course.phase, step_tokens=np.diff(course.starts).astype(np.int32), timeline=timeline)
        np.add.at(done.kinds, course.phase, kinds)
        np.add.at(done.loaded, course.phase, of_step)
        np.add.at(done.tokens, course.phase, done.step_tokens)
        if timeline is not None:
            done.step_ns = np.diff(end, prepend=0)
        found.append((done, of_step))
    return found


def demand_loads(
    trace: Trace, spec: CacheSpec, demands: Iterable[Demand] | None, reshape: Callable[[Demand], Demand]
) -> np.ndarray:
    """Demand loads of decode steps in each layer, i64 [layers], with each piece's demand reshaped."""
    found = np.zeros(spec.layers, np.int64)
    for demand, events in iter_decisions(trace, spec, demands=demands, reshape=reshape):
        kind = events.code >> KIND_SHIFT
        counts = np.diff(events.start)
        decode = np.repeat(np.repeat(demand.phase == DECODE, demand.layers), counts)
        loads = decode & ((kind == LOAD) | (kind == BYPASS))
        found += np.bincount((events.code[loads] & KEY_MASK) // spec.experts, minlength=spec.layers)
    return found
