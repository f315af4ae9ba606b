"""Which machine: the fastest plan found on each, whether it is fast enough, what it costs, and what binds it.

Plans race on each machine; whoever is left anywhere is timed on every machine that it fits, and the fastest counts. So
a better machine runs all that a worse one runs. Where a plan prefetches or the host computes, the better one may
still be slower; it is then counted as held to the worse one's times (`experiments.size.held`). No better machine of one
table is therefore slower in it. Where a time to the first token is wanted, plans that reach it come first: then no
better machine misses what a worse one reaches, and of two that both reach it, or both miss it, the better is no slower.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from engine.plan.plan import Plan
from engine.replay.estimates import find_estimates
from engine.replay.passes import Steps
from engine.replay.result import Estimates, Time
from engine.replay.sensitivities import DEVICE, HOST, LINK, MEMORY, OVERHEAD, find_sensitivities
from engine.replay.setting import Setting
from engine.replay.summary import time_of
from engine.shapes import ModelShape
from experiments.recommend.race import Timed
from experiments.recommend.residence import Where
from experiments.size.field import SECOND, Field
from experiments.size.held import holds
from experiments.size.pareto import pareto
from experiments.size.priced import Priced
from experiments.statistics.request_shares import RequestShares
from experiments.statistics.speeds import Ends, speed_interval
from tracekit.errors import StudyError
from tracekit.rows import DECODE
from tracekit.trace import Trace

FORMATS = ("hqq-4bit",)
"""One for all machines: the fastest of several would be the one of fewest bits."""
LIKELY = "likely"
YES, NO, PERHAPS = "yes", "no", "perhaps"
BINDS = {
    LINK: "link",
    DEVICE: "device bandwidth",
    HOST: "host bandwidth",
    OVERHEAD: "engine's overhead",
    MEMORY: "device memory",
}
LEAST_GAIN = 0.02
"""What twice of anything has to win at least, or no part of the machine binds."""


class Goal(NamedTuple):
    """What is wanted: tokens per second of all sequences together, seconds to the first token. None: not asked."""

    tokens_per_second: float | None = None
    ttft_s: float | None = None


NO_GOAL = Goal()


class Row(NamedTuple):
    """A machine with the fastest plan found on it; without `plan`, `refused` says why there is none."""

    machine: str
    refused: str | None = None
    plan: Plan | None = None
    where: Where | None = None
    """Where its experts lie."""
    tokens_per_second: float | None = None
    low: float | None = None
    high: float | None = None
    time: Time | None = None
    estimates: Estimates | None = None
    held_to: str | None = None
    """The machine whose times are counted, where its own were longer."""
    reached: str | None = None
    """YES, NO or PERHAPS: the interval holds the goal; None where none was given."""
    binds: str = "device memory"
    gain: float | None = None
    """What twice of that would win."""
    purchase: float | None = None
    hired: bool = False
    pareto: str | None = None
    """See `experiments.size.pareto`; None of a machine that does not reach the goal."""
    unknown: Sequence[str] = ()


class Sizing(NamedTuple):
    """One row for each machine, in their order."""

    rows: list[Row]
    prompt_tokens: float | None
    """Of the prompts that times to the first token are of; None without prompts."""
    notes: list[str]
    tried: int


def size(
    routing: Trace | Mapping[str, Trace],
    machines: Sequence[Priced],
    shape: ModelShape | None = None,
    *,
    goal: Goal = NO_GOAL,
    context: int | None = None,
    batch: int | None = None,
    formats: Sequence[str] = FORMATS,
    reshape: str | None = None,
    host_memory: int | None = None,
    disk_speed: int | None = None,
    workers: int = 2,
    progress: Callable[[int], object] | None = None,
) -> Sizing:
    """The fastest plan found on each machine, and what follows.

    Args:
        routing: a trace of the model, or of one with as many layers and experts; or several by name, of which "likely"
            decides and the others say between which speeds its plans lie.
        shape: the model's sizes; None takes those of the trace.
        context: tokens of each sequence, which decode steps read and memory holds; None: steps read what the trace
            says, and memory holds `experiments.recommend.race.CONTEXT`, or the trace's longest.
        batch: as if so many requests came together; None: as in the trace.
        host_memory, disk_speed: bytes that every host has for experts, and bytes per second of the disk behind it;
            None: what each profile says.

    Raises StudyError where machines share a name, nothing fits or nothing is decoded, and what a replay raises.
    """
    names = [one.machine.name for one in machines]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"{twice[0]} is there twice: give each machine a name of its own")
    levels = dict(routing) if isinstance(routing, Mapping) else {LIKELY: routing}
    trace = levels.pop(LIKELY)
    field = Field(
        trace,
        [one.machine for one in machines],
        shape,
        reshape=reshape,
        context=context,
        batch=batch,
        host_memory=host_memory,
        disk_speed=disk_speed,
        workers=workers,
        progress=progress,
    )
    if not (field.steps.phase == DECODE).any():
        raise StudyError(
            f"{trace.path} decodes nothing, so it tells no tokens per second: record some generated tokens"
        )
    plans, refused = field.finalists(formats)
    if not plans:
        why = next(iter(refused.values()), f"{trace.path} answers none of the plans")
        raise StudyError(f"nothing fits any of these machines: {why}")
    found = field.everywhere(plans)
    winners = {name: best for name in names if (best := winner(found, name, goal.ttft_s)) is not None}
    ends = _ends(field, winners, levels)
    shares, begun = RequestShares.of(field.trace), field.beginning(SECOND).open()
    rows = []
    for one in machines:
        name = one.machine.name
        if name not in winners:
            rows.append(Row(name, refused.get(name, "no plan fits"), unknown=one.unknown))
            continue
        counted = winners[name].counted
        between = ends[name] if levels else speed_interval(shares, counted.done.step_ns, counted.setting.scale)
        binds, gain = _binding(field, winners[name].own.setting, begun)
        rows.append(_row(one, winners[name], between, goal)._replace(binds=binds, gain=gain))
    notes = {note for one in found if one.setting.costs is not None for note in one.setting.costs.notes}
    return Sizing(_marked(rows), _prompt_tokens(field.steps), sorted(notes), field.tried)


class Winner(NamedTuple):
    """The fastest plan on a machine: `own` is what it takes there, `counted` what counts."""

    own: Timed
    counted: Timed


def winner(found: Sequence[Timed], name: str, ttft_s: float | None = None) -> Winner | None:
    """The fastest plan on a machine, or one that it could be held to; its own where both are as fast.

    Plans that reach the time to the first token come before those that do not.
    """
    best, rank = None, (False, -1.0)
    for own in (one for one in found if one.entrant.residence.machine.name == name):
        others = [one for one in found if one.entrant.plan is own.entrant.plan and one is not own]
        for one in [own, *(other for other in others if _held(own.setting, other.setting))]:
            first = _ttft_s(one)
            placed = (ttft_s is None or first is None or first <= ttft_s, one.speed)
            if best is None or placed > rank:
                best, rank = Winner(own, one), placed
    return best


def _ttft_s(one: Timed) -> float | None:
    """As `engine.replay.result.Time` has it: the mean time of a prefill step."""
    prefill = one.done.step_ns[one.done.phase != DECODE]
    return float(prefill.mean()) * one.setting.scale / 1e9 if len(prefill) else None


def _held(better: Setting, worse: Setting) -> bool:
    assert better.costs is not None and worse.costs is not None
    return better.spec.meaning == worse.spec.meaning and holds(better.costs, worse.costs)


def _row(priced: Priced, best: Winner, between: Ends | None, goal: Goal) -> Row:
    setting, machine = best.counted.setting, priced.machine
    assert setting.machine is not None
    held = setting.machine.name
    # What it draws and costs is its own, whatever machine it is held to.
    paid = msgspec.structs.replace(setting.machine, name=machine.name, power=machine.power, price=machine.price)
    setting = replace(setting, machine=paid)
    time = time_of(setting, best.counted.done)
    assert time is not None
    low, high = between or (None, None)
    return Row(
        machine.name,
        plan=best.own.entrant.residence.said_by(best.own.entrant.plan, machine),
        where=best.own.entrant.residence.where,
        tokens_per_second=best.counted.speed,
        low=low,
        high=high,
        time=time,
        estimates=find_estimates(setting, best.counted.done),
        held_to=None if held == machine.name else held,
        reached=reached(goal, best.counted.speed, low, high, time.ttft_ms),
        purchase=priced.purchase,
        hired=priced.hired,
        unknown=priced.unknown,
    )


def reached(goal: Goal, speed: float, low: float | None, high: float | None, ttft_ms: float | None) -> str | None:
    """Whether a speed between `low` and `high` and a time to the first token are what was wanted."""
    found = []
    if goal.tokens_per_second is not None:
        least, most = (speed if end is None else end for end in (low, high))
        found.append(YES if least >= goal.tokens_per_second else NO if most < goal.tokens_per_second else PERHAPS)
    if goal.ttft_s is not None:
        found.append(PERHAPS if ttft_ms is None else YES if ttft_ms <= 1e3 * goal.ttft_s else NO)
    return next((word for word in (NO, PERHAPS, YES) if word in found), None)


def _marked(rows: list[Row]) -> list[Row]:
    """Rows with their place among those that reach the goal."""
    figures = {
        place: (row.purchase, row.estimates.joules_per_token, row.estimates.cost_per_million_tokens)
        for place, row in enumerate(rows)
        if row.estimates is not None and row.reached != NO
    }
    found = dict(zip(figures, pareto(list(figures.values())), strict=True))
    return [row._replace(pareto=found.get(place)) for place, row in enumerate(rows)]


def _ends(field: Field, winners: Mapping[str, Winner], levels: Mapping[str, Trace]) -> dict[str, Ends]:
    """Between which speeds each machine's plan lies on all these routings."""
    speeds = {name: [best.counted.speed] for name, best in winners.items()}
    plans = list({id(best.own.entrant.plan): best.own.entrant.plan for best in winners.values()}.values())
    for other in levels.values():
        found = field.everywhere(plans, other)
        for name, best in winners.items():
            same = winner([one for one in found if one.entrant.plan is best.own.entrant.plan], name)
            if same is not None:
                speeds[name].append(same.counted.speed)
    return {name: (min(own), max(own)) for name, own in speeds.items()}


def _binding(field: Field, setting: Setting, begun: Trace) -> tuple[str, float | None]:
    """What would help the plan most if there were twice of it, and how much; else what most of the time is."""
    found = find_sensitivities(begun, setting, steps=field.served(Steps.of(begun)))
    twice = [one for one in found if one.times == 2]
    most = max(twice, key=lambda one: one.gain, default=None)
    if most is None or most.gain < LEAST_GAIN:
        return "no one part", None if most is None else most.gain
    return BINDS[most.part], most.gain


def _prompt_tokens(steps: Steps) -> float | None:
    tokens = np.diff(steps.starts)[steps.phase != DECODE]
    return float(tokens.mean()) if len(tokens) else None
