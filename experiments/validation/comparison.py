"""What the engine did and what the simulator says of it, compared: decisions entry by entry, tokens, and time."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.plan.tables import WeightsPlan
from engine.replay.passes import Replayed, run
from engine.replay.setting import Setting
from engine.replay.summary import prefetch_fates
from experiments.validation.orders import Orders
from experiments.validation.prior import PriorCheck
from experiments.validation.verdict import TOLERANCE, TimeError, Verdict, judge, time_words
from policies.events import Events
from tracekit.errors import ModelError
from tracekit.rows import DECODE
from tracekit.trace import Trace

if TYPE_CHECKING:
    from engine.runtime.clocks.timing import Timings
    from engine.runtime.links.thread_link import EmulatedLink


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """The two decision logs, compared entry by entry."""

    entries: int
    identical: bool
    first_difference: str | None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Generated tokens of the offloaded and the un-offloaded model; `why` there were none to compare."""

    compared: int
    identical: bool
    why: str | None = None


class Prefetches(msgspec.Struct, frozen=True, kw_only=True):
    """What became of prefetches: {"useful", "late", "wasted"} in the simulator and in the engine."""

    simulated: dict[str, int]
    measured: dict[str, int]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was compared, and the verdict: `passed` unless it failed, `verdict` in words."""

    model: str
    plan: dict[str, Any]
    decisions: Decisions
    tokens: Tokens
    time: TimeError
    prefetches: Prefetches | None
    threshold: float | None
    judged: Verdict
    passed: bool
    verdict: str
    host: str = "in memory"
    warnings: list[str] = []
    prior: PriorCheck | None = None
    """What would have been said of the model had nothing been recorded of it; None where no prior can run the plan."""
    routing: Orders | None = None
    """Of a plan that alters routing: how far a first-order estimate is from what the engine did."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What the engine did in all its runs of one routing, and what its experts take.

    `logs`: the decisions of each run; `timings`: the times of those that were timed; `fates`: what became of the last
    one's prefetches.
    """

    logs: Sequence[Events]
    timings: Sequence["Timings"]
    fates: dict[str, int]
    expert_bytes: Sequence[int]
    expert_params: Sequence[int]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the simulator assumes, and whether it was measured here and now: a profile for each time it was measured."""

    profiles: Sequence[HardwareProfile]
    calibrated_here: bool
    device: str
    emulate_link: "EmulatedLink | None"


def compare(
    model: str,
    plan: Plan,
    trace: Trace,
    measured: Measured,
    machine: Machine,
    *,
    tokens: Tokens,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    whole: bool = True,
    host: str = "in memory",
) -> Validation:
    """The verdict on `plan`, which the engine ran on the routing of `trace`; the simulator runs it here.

    `whole`: the engine was not stopped midway, where prefetches are under way of which nobody knows what becomes.
    """
    settings = [engine_setting(trace, plan, measured, hardware) for hardware in machine.profiles]
    pieces: list[Events] = []
    simulated = run(
        trace,
        settings[0].spec,
        [setting.target for setting in settings],
        keep=True,
        on_events=lambda demand, events: pieces.append(events),
    )
    log, *others = measured.logs
    decisions = compare_logs(Events.join(pieces), log)
    for other in others if decisions.identical else ():
        again = compare_logs(other, log)
        if not again.identical:
            first = f"the engine differs from its own first run: {again.first_difference}"
            decisions = msgspec.structs.replace(again, first_difference=first)
    time = time_error(simulated, measured.timings, machine, trace.layers)
    right = decisions.identical and tokens.identical
    judged = judge(identical=right, time=time, tolerance=tolerance, threshold=threshold)
    return Validation(
        model=model,
        plan=plan.to_dict(),
        decisions=decisions,
        tokens=tokens,
        time=time,
        prefetches=Prefetches(simulated=prefetch_fates(simulated[0]), measured=measured.fates) if whole else None,
        threshold=threshold,
        judged=judged,
        passed=judged.outcome != "failed",
        verdict=f"{exact_words(decisions, tokens)}; {time_words(time, judged, threshold)}",
        host=host,
        warnings=[] if machine.calibrated_here else profile_warnings(machine.profiles[0], machine.device),
    )


def engine_setting(trace: Trace, plan: Plan, measured: Measured, hardware: HardwareProfile) -> Setting:
    """The plan at the sizes of the engine's experts: the trace counts what the model was loaded with."""
    manifest = msgspec.structs.replace(
        trace.manifest, expert_bytes=list(measured.expert_bytes), expert_params=list(measured.expert_params)
    )
    return Setting.of(manifest, plan.replace(weights=WeightsPlan()), hardware, stored=plan.weights.experts)


def profile_warnings(hardware: HardwareProfile, device: str) -> list[str]:
    """What makes the error of a given profile's times say little about the simulator, if anything."""
    doubt = f"hardware profile {hardware.name!r} %s: the error of its times is no measure of the simulator"
    if not hardware.calibrated:
        return [doubt % "was not measured on this machine, nor on any"]
    here = f"{device.partition(':')[0]} of {platform.machine()} {platform.system()}"
    # As calibration describes a machine; a profile's name is the user's to choose.
    told = hardware.description.partition(", measured")[0]
    return [] if told.startswith(here) else [doubt % f"is of another machine ({told}) than this one ({here})"]


def compare_logs(simulated: Events, measured: Events) -> Decisions:
    """Compare two decision logs entry by entry."""
    shortest = min(len(simulated), len(measured))
    differs = simulated.code[:shortest] != measured.code[:shortest]
    differs |= simulated.visit[:shortest] != measured.visit[:shortest]
    first = int(np.argmax(differs)) if differs.any() else shortest
    identical = not differs.any() and len(simulated) == len(measured)
    difference = None
    if not identical:
        entries = [log.rows()[first] if first < len(log) else "nothing" for log in (simulated, measured)]
        difference = f"entry {first}: simulator {entries[0]}, engine {entries[1]} (visit, kind, expert, slot)"
    return Decisions(entries=len(measured), identical=identical, first_difference=difference)


def time_error(simulated: Sequence[Replayed], timings: Sequence["Timings"], machine: Machine, layers: int) -> TimeError:
    """How far simulated decode steps and visits are from measured ones, each the median over its side's runs.

    Raises ModelError when there are none.
    """
    phase = simulated[0].phase
    if any(len(one.step_start) != len(phase) for one in timings):
        raise ModelError("the engine ran another number of steps than it recorded: the model is not deterministic")
    decode = phase == DECODE
    if not decode.any():
        raise ModelError("no decode steps to time: raise --max-new-tokens")
    runs = [(one.step_end - one.step_start)[decode].astype(float) for one in timings]
    model_runs = [one.step_ns[decode].astype(float) for one in simulated]
    measured, modelled = np.median(runs, axis=0), np.median(model_runs, axis=0)

    def spans(ends: np.ndarray) -> np.ndarray:
        # A visit ends where the next begins or the step ends; its time runs from the end of the one before.
        found: np.ndarray = np.diff(ends.reshape(-1, layers), axis=1)[decode].astype(float)
        return found

    visits, model_visits = (np.median([spans(one.visit_end) for one in side], axis=0) for side in (timings, simulated))
    link, hardware = machine.emulate_link, machine.profiles[0]
    return TimeError(
        hardware=hardware.name,
        engine=hardware.engine.name,
        calibrated_here=machine.calibrated_here,
        emulated_link=None if link is None else f"{link.bytes_per_s / 1e9:g} GB/s",
        steps=int(decode.sum()),
        measured_tokens_per_second=rate(measured),
        simulated_tokens_per_second=rate(modelled),
        tokens_per_second_error=rate(modelled) / rate(measured) - 1,
        measured_p99_ms=float(np.percentile(measured, 99) / 1e6),
        simulated_p99_ms=float(np.percentile(modelled, 99) / 1e6),
        p99_error=float(np.percentile(modelled, 99) / np.percentile(measured, 99) - 1),
        step_error_median=float(np.median(np.abs(modelled - measured) / measured)),
        layer_error_median=float(np.median(np.abs(model_visits - visits) / np.maximum(visits, 1))),
        total_error=float(modelled.sum() / measured.sum() - 1),
        measured_step_ms=(measured / 1e6).round(4).tolist(),
        simulated_step_ms=(modelled / 1e6).round(4).tolist(),
        measured_runs=[rate(one) for one in runs],
        simulated_runs=[rate(one) for one in model_runs],
    )


def rate(steps: np.ndarray) -> float:
    """Tokens per second of decode steps that take so many nanoseconds, a token each."""
    return float(len(steps) / steps.sum() * 1e9)


def exact_words(decisions: Decisions, tokens: Tokens) -> str:
    """Whether decisions and tokens agree."""
    logs = f"decision logs {'identical' if decisions.identical else 'DIFFER'} ({decisions.entries} entries)"
    text = f"generated tokens {'identical' if tokens.identical else 'DIFFER'} ({tokens.compared})"
    return f"{logs}; {f'no tokens compared, {tokens.why}' if tokens.compared == 0 else text}"
