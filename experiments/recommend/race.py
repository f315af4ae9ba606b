"""Which plan to run: formats, capacities, policies, prefetchers and lane in a machine's memory, on recorded routing.

The capacity of each format is what fits beside all else (`engine.replay.memory`). What is left is a race within each
format on ever longer beginnings of the trace: policies with and without the CPU lane, the best of them with every
prefetcher, the best of those again. Who is left is replayed whole, so the figures are those of a replay.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from engine.hardware import HardwareProfile
from engine.plan.plan import CachePlan, ComputePlan, EvictionPlan, Plan, PrefetchPlan
from engine.plan.weights import WeightFormat
from engine.replay.memory import fit_capacity, load_of
from engine.replay.passes import Replayed, Steps
from engine.replay.replay import replay
from engine.replay.result import Result
from engine.shapes import ModelShape
from experiments.statistics.interval import fewest_requests, interval, ratio_of
from experiments.study.request_shares import RequestShares
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tracekit.errors import CapacityError, PlanError, StudyError
from tracekit.prefix import first_steps, prefix_steps
from tracekit.trace import Trace

FORMATS = ("bf16", "hqq-8bit", "hqq-4bit", "hqq-3bit", "hqq-2bit")
"""What the engine stores; `gguf`'s and others only if asked for."""
FIRST, SECOND = 1 / 16, 1 / 4
"""Shares of the decode steps of the first two rounds."""
LEAST_STEPS = 64
"""Decode steps of a beginning, at least."""
LEFT = (3, 4, 2)
"""Plans of each format that are left after each round."""
SHOWN = 5
LEVEL = 0.95
NOT_OFFERED = {"static", "learned", "popular", "learned-adaptive", "random", "fifo", "clock", "lfu-perfect"}
"""They need a profile or a fitted file of their own, or are for comparison."""


class Choice(NamedTuple):
    """A plan, and what a replay of the whole trace says of it; an interval over requests, None where they are few."""

    plan: Plan
    result: Result
    low: float | None
    high: float | None

    @property
    def tokens_per_second(self) -> float:
        time = self.result.time
        return time.tokens_per_second or 0.0 if time is not None else 0.0

    @property
    def limit(self) -> str:
        """What takes the largest part of the time."""
        time = self.result.time
        assert time is not None
        parts = {"computing": time.compute_s, "overhead of the engine": time.overhead_s}
        parts |= {f"waiting: {cause.replace('_', ' ')}": seconds for cause, seconds in time.stall_s.items()}
        return max(parts, key=lambda name: parts[name])


class Recommendation(NamedTuple):
    """The best plan of each format, fastest first; formats that do not fit, and why; how many replays it took."""

    choices: list[Choice]
    refused: dict[str, str]
    tried: int


def recommend(
    trace: Trace,
    machine: HardwareProfile,
    shape: ModelShape | None = None,
    *,
    context: int | None = None,
    batch: int | None = None,
    formats: Sequence[str] = FORMATS,
    reshape: str | None = None,
    workers: int = 2,
    progress: Callable[[int], object] | None = None,
) -> Recommendation:
    """The best plan of each format for a machine, by decode tokens per second.

    Args:
        trace: routing of the model, or of one with as many layers and experts.
        shape: the model's sizes; None takes those of the trace.
        reshape: as `replay` takes it, where the trace routes otherwise than a model of that shape.
        context, batch: what is served: tokens of each sequence, sequences; None: as in the trace.
        progress: called with 1 for each plan that was replayed.

    Raises StudyError where no format fits, and what a replay raises.
    """
    race = Race(trace, machine, shape, reshape=reshape, workers=workers, progress=progress)
    serve = {key: value for key, value in (("context", context), ("batch", batch)) if value is not None}
    refused: dict[str, str] = {}
    field: list[Plan] = []
    for word in formats:
        WeightFormat.parse(word)
        try:
            field += race.capacities(Plan("auto", weights=word, serve=serve))
        except CapacityError as error:
            refused[word] = str(error)
    if not field:
        raise StudyError(f"no format fits {machine.name}: {next(iter(refused.values()), 'none was given')}")
    field = race.best(race.with_lanes(race.with_policies(field)), FIRST, LEFT[0])
    field = race.best(race.with_prefetching(field), FIRST, LEFT[1])
    field = race.best(field, SECOND, LEFT[2])
    whole = sorted(race.choices(field), key=lambda choice: -choice.tokens_per_second)
    if not whole:
        raise StudyError(f"{trace.path}: no plan could be replayed on it on {machine.name}")
    first: dict[str | None, Choice] = {}
    for choice in whole:
        first.setdefault(choice.plan.weights.experts, choice)
    return Recommendation(list(first.values())[:SHOWN], refused, race.tried)


class Race:
    """Plans replayed on beginnings of one trace, on one machine."""

    def __init__(
        self,
        trace: Trace,
        machine: HardwareProfile,
        shape: ModelShape | None,
        *,
        reshape: str | None = None,
        workers: int = 2,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.trace, self.machine, self.shape, self.workers, self.progress = trace, machine, shape, workers, progress
        self.reshape = reshape
        self.tried = 0
        self.steps = Steps.of(trace)

    def capacities(self, plan: Plan) -> list[Plan]:
        """What fits, as so many slots of each layer and as that many for all. CapacityError where nothing does."""
        load = load_of(plan, self.steps)
        fitted = fit_capacity(plan, self.trace.manifest, self.machine, self.shape, load, reshape=self.reshape)
        slots = int(fitted.cache.capacity.removesuffix("/layer"))
        layers = len(self.trace.manifest.experts_per_layer)
        alike = self.shape is None or len(self.shape.moe_layers) == layers
        together = [plan.replace(cache=CachePlan(capacity=str(slots * layers)))] if alike else []
        return [fitted, *together]

    def with_policies(self, plans: Sequence[Plan]) -> list[Plan]:
        names = [name for name in EVICTION if name not in NOT_OFFERED and not eviction_policy(name).bound]
        return [plan.replace(eviction=EvictionPlan(policy=name)) for plan in plans for name in names]

    def with_prefetching(self, plans: Sequence[Plan]) -> list[Plan]:
        """Each plan as it is, and with every prefetcher: few or many suggestions, one layer ahead or two."""
        top_k = self.trace.manifest.top_k
        found = list(plans)
        for name in PREFETCH:
            if name == "none" or name in NOT_OFFERED or prefetcher(name).bound:
                continue
            depths = self.depths() if name.startswith("gate") else [1]
            for distance in depths:
                for count in sorted({max(1, top_k // 2), top_k}):
                    wanted = PrefetchPlan(predictor=name, distance=distance, count=count, staging=max(4, 2 * top_k))
                    found += [plan.replace(prefetch=wanted) for plan in plans]
        return found

    def depths(self) -> list[int]:
        """Distances that the trace has the gate's lookahead for."""
        kinds = self.trace.manifest.dense_kinds()
        return sorted(int(kind.removeprefix("lookahead-")) for kind in kinds if kind.startswith("lookahead-"))[:2]

    def with_lanes(self, plans: Sequence[Plan]) -> list[Plan]:
        if self.machine.cpu is None:
            return list(plans)
        lane = ComputePlan(cpu_experts="auto")
        return [*plans, *(plan.replace(compute=lane) for plan in plans)]

    def best(self, plans: Sequence[Plan], share: float, keep: int) -> list[Plan]:
        """The best of each format on a beginning of the trace."""
        begun = first_steps(self.trace, prefix_steps(self.trace, share, LEAST_STEPS))
        ranked = sorted(
            ((result, plan) for plan, result in zip(plans, self.replayed(plans, begun), strict=True) if result),
            key=lambda pair: -_speed(pair[0]),
        )
        kept: dict[str | None, list[Plan]] = {}
        for _, plan in ranked:
            group = kept.setdefault(plan.weights.experts, [])
            if len(group) < keep:
                group.append(plan)
        return [plan for group in kept.values() for plan in group]

    def speeds(self, plans: Sequence[Plan], trace: Trace) -> list[float]:
        """Decode tokens per second of each plan; 0 for what the trace cannot answer, or what does not fit."""
        return [0.0 if result is None else _speed(result) for result in self.replayed(plans, trace)]

    def replayed(self, plans: Sequence[Plan], trace: Trace) -> list[Result | None]:
        """Results in the order of the plans; None for what the trace cannot answer, or what does not fit."""

        def one(plan: Plan) -> Result | None:
            result = self.timed(plan, trace)
            self.count()
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(one, plans))

    def timed(self, plan: Plan, trace: Trace, on_done: Callable[[Replayed], object] | None = None) -> Result | None:
        try:
            result = replay(
                trace,
                plan,
                self.machine,
                model_shape=self.shape,
                reshape=self.reshape,
                bounds=False,
                on_done=on_done,
            )
        except PlanError:  # it asks for what was not recorded: gate weights, logits
            return None
        over = result.estimates is None or result.estimates.device_bytes > self.machine.device.memory_bytes
        return None if over else result

    def count(self) -> None:
        self.tried += 1
        if self.progress is not None:
            self.progress(1)

    def choices(self, plans: Sequence[Plan]) -> list[Choice]:
        """Each plan on the whole trace, with the interval of its speed over requests."""
        shares = RequestShares.of(self.trace)

        def one(plan: Plan) -> Choice | None:
            passes: list[Replayed] = []
            result = self.timed(plan, self.trace, passes.append)
            self.count()
            if result is None or result.time is None:
                return None
            nanoseconds = shares.of_each(passes[0].step_ns, result.time.scale)
            low, high = _interval(nanoseconds, shares.tokens)
            return Choice(plan, result, low, high)

        with ThreadPoolExecutor(self.workers) as pool:
            return [choice for choice in pool.map(one, plans) if choice is not None]


def _speed(result: Result) -> float:
    return 0.0 if result.time is None else result.time.tokens_per_second or 0.0


def _interval(nanoseconds: np.ndarray, tokens: np.ndarray) -> tuple[float | None, float | None]:
    """Tokens per second between which the speed lies at `LEVEL`, requests being drawn; None where they are too few."""
    found = ratio_of(nanoseconds.astype(float), tokens.astype(float))
    if len(tokens) < 2 or found.effective < fewest_requests(LEVEL):
        return None, None
    slow, fast = (float(end) for end in interval(found, LEVEL)[::-1])
    return 1e9 / slow, (1e9 / fast if fast > 0 else None)
