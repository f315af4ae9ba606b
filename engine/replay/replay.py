"""`replay`: a plan's decisions on a recorded trace, and their time on a modelled machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.decisions.evidence import check_evidence
from engine.decisions.rerouted import FIRST_ORDER, Choices, rerouted, routing_spec
from engine.decisions.run import OnEnd
from engine.hardware import EngineProfile, HardwareProfile, load_hardware
from engine.plan.plan import Plan, PlanLike, as_plan
from engine.replay.advice import TIERED, DecodeWork, advice, first_order_caution, fit_warnings, prefetch_warnings
from engine.replay.bounds import bounds_passes, find_bounds, is_bounded
from engine.replay.estimates import find_estimates
from engine.replay.given_decisions import GivenDecisions
from engine.replay.memory import fit_capacity, load_of
from engine.replay.passes import Replayed, Steps, run
from engine.replay.regret import find_regret, regret_passes
from engine.replay.result import PhaseCounts, Result, altered_routing
from engine.replay.sensitivities import PASSES, find_sensitivities
from engine.replay.setting import Setting
from engine.replay.summary import counts_of, tiers_of, time_of
from engine.replay.switching import Switches
from engine.shapes import ModelShape, load_shape
from policies.events import Events
from tracekit.demand import Demand
from tracekit.errors import PlanError, TraceError
from tracekit.progress import reporting
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace
from tracekit.version import own_version


def replay(
    trace: Trace | str | os.PathLike[str],
    plan: PlanLike | None,
    hardware: HardwareProfile | str | os.PathLike[str] | None = None,
    *,
    engine: EngineProfile | str | os.PathLike[str] | None = None,
    model_shape: ModelShape | str | os.PathLike[str] | None = None,
    reshape: str | None = None,
    bounds: bool | None = None,
    sensitivities: bool = False,
    allow_fitted: bool = False,
    decisions: GivenDecisions | str | os.PathLike[str] | None = None,
    warm_up: int = 0,
    progress: bool | Callable[[int], object] = False,
    on_events: Callable[[Demand, Events], object] | None = None,
    on_done: Callable[[Replayed], object] | None = None,
    on_end: OnEnd | None = None,
    on_choices: Callable[[Choices], object] | None = None,
    log: range | None = None,
) -> Result:
    """Replay `plan` on `trace`; with `hardware`, also time it.

    Args:
        trace: a trace, or the path of one.
        plan: a plan, its tables, or the path of its file; None, with `decisions`, is the one that their file names.
        hardware: a profile, the name of a shipped one or the path of its file; None counts hits and bytes only.
        engine: what software takes of the machine's time: a profile, the name of a shipped one or the path of its file;
            None: the one that the machine's profile carries, or transformers-eager.
        model_shape: time (and size) experts as those of this model; None uses the trace's own model.
        reshape: what it means if that model routes otherwise than the trace: "sizes" keeps the routing and gives each
            expert the size of that model's; None refuses.
        bounds: also replay Belady's decisions at the same capacity, to say how far from the best the plan is. They need
            the whole trace's demand in memory, so None leaves them out beyond `BOUNDED_LOOKUPS`.
        sensitivities: also find how fast the plan would be on a machine of which one part is better: three more passes.
        allow_fitted: replay also requests that a fitted predictor of the plan has learned from; the result says so.
        decisions: decisions that somebody else made, a file as `--events` writes it: they are counted and timed instead
            of the plan's, which then only says how they are carried out. There is no regret.
        warm_up: tokens that fill the cache: steps that begin within them are not counted, in hits, loads or times.
        progress: True shows a bar; a function is called with the number of tokens of each finished piece of each pass.
        on_events: called with each piece's demand and decisions.
        on_choices: called with each piece's choices, before and after, where the plan has a routing policy.
        on_done: called with the plan's own pass: times by step and visit, the timeline's log.
        on_end: called with the cache when the plan's own pass has decided all.
        log: the steps, by running number from 0, whose course the timeline logs.

    Raises:
        TracekitError: the trace, the plan and the hardware do not fit together.
    """
    trace = trace if isinstance(trace, Trace) else Trace.open(Path(trace))
    if isinstance(decisions, GivenDecisions | None):
        given = decisions
    else:
        given = GivenDecisions(decisions, trace, None if plan is None else as_plan(plan))
    if given is not None:
        plan = given.plan
    elif plan is None:
        raise PlanError("replay what? give a plan, or decisions")
    plan = as_plan(plan)
    machine = None if hardware is None else load_hardware(hardware, engine)
    shape = model_shape if isinstance(model_shape, ModelShape | None) else load_shape(model_shape)
    if sensitivities and machine is None:
        raise PlanError("sensitivities are of a machine: give hardware too (--hardware)")
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to replay")
    seen = check_evidence(trace, plan, allow_fitted=allow_fitted)
    steps = Steps.of(trace)
    load = load_of(plan, steps)
    if machine is not None:
        plan = fit_capacity(plan, trace.manifest, machine, shape, load, reshape=reshape)
    setting = Setting.of(trace.manifest, plan, machine, shape, reshape=reshape, load=load, given=given)
    tiered, timed = plan.precision is not None, machine is not None
    bounded = is_bounded(trace, bounds) and not tiered
    if tiered and (bounds or given is not None):
        raise PlanError(
            "of a plan with precision tiers there are no bounds, and its decisions cannot be given: leave out "
            + ("--bounds" if bounds else "--decisions")
        )
    if sensitivities and plan.routing.alters:
        raise PlanError(
            "sensitivities are of recorded routing, which a plan with a routing policy alters by what its cache holds: "
            "without --sensitivities, or without the policy"
        )
    passes = replay_passes(trace, plan, timed=timed, bounds=bounds, given=given is not None) + sensitivities * PASSES
    uncounted = warm_up_steps(trace, steps, warm_up)
    best = regret = better = estimates = altered = None
    switches = Switches(setting.spec.layers, setting.spec.experts, uncounted)
    recorded = trace
    with reporting(progress, "replaying", passes * trace.tokens) as report:
        if plan.routing.alters and given is None:
            spec = routing_spec(plan.routing, trace.manifest)
            changed = rerouted(trace, setting.spec, spec, progress=report, on_choices=on_choices)
            trace, of_plan = changed.trace, changed.altered(uncounted)
            altered = altered_routing(plan.routing.policy, FIRST_ORDER, of_plan)
        (done,) = run(
            trace,
            setting.spec,
            [setting.target],
            steps=steps,
            given=given,
            warm_up=uncounted,
            progress=report,
            on_events=on_events,
            on_switch=switches.add,
            on_end=on_end,
            keep=timed,
            log=log,
        )
        if on_done is not None:
            on_done(done)
        if bounded and timed and given is None:
            regret = find_regret(trace, setting, done, report, warm_up=uncounted)
        done = done.counted(uncounted)
        if bounded:
            best = find_bounds(recorded, setting, done, report, warm_up=uncounted, given=given)
            if altered is not None:
                best = msgspec.structs.replace(best, routing="unaltered")
        if sensitivities and given is None:
            better = find_sensitivities(trace, setting, report, warm_up=uncounted)
    sized = bool(setting.sizes)
    time = time_of(setting, done)
    warnings = seen + [found.text for found in advice(trace, setting, DecodeWork.of(done), time)]
    if altered is not None:
        warnings.append(first_order_caution(altered.policy).text)
    if tiered:
        warnings.append(TIERED.text)
    elif not bounded and bounds is None:
        warnings.append(
            "no bounds: they would read this long trace into memory and take longer than all else; --bounds asks"
        )
    if time is not None:
        if given is None:
            found = prefetch_warnings(trace, setting, done, time, warm_up=uncounted)
            warnings += [one.text for one in found]
        estimates = find_estimates(setting, done)
        warnings += [found.text for found in fit_warnings(setting)]
    return Result(
        **msgspec.structs.asdict(counts_of(done, [PREFILL, DECODE], sized=sized)),
        phases=PhaseCounts(
            prefill=counts_of(done, [PREFILL], sized=sized), decode=counts_of(done, [DECODE], sized=sized)
        ),
        routing=altered,
        time=time,
        bounds=best,
        regret=regret,
        sensitivities=better,
        estimates=estimates,
        switching=None if setting.spec.domains is None else switches.found(setting.sizes),
        warnings=warnings,
        precision=tiers_of(done, sized=sized),
        provenance=_provenance(recorded, setting)
        | {"decisions": None if given is None else given.about}
        | {"warm_up": {"tokens": warm_up, "steps": uncounted}},
    )


def replay_passes(trace: Trace, plan: Plan, *, timed: bool, bounds: bool | None, given: bool = False) -> int:
    """How often a replay goes over the trace: once for the plan, and before that if it alters routing; then for each
    bound and each part of the regret.

    There is no regret of decisions that are `given`.
    """
    own = 1 + (plan.routing.alters and not given)
    if plan.precision is not None or not is_bounded(trace, bounds):
        return own
    return own + bounds_passes(timed=timed) + (regret_passes(plan) if timed and not given else 0)


def warm_up_steps(trace: Trace, steps: Steps, tokens: int) -> int:
    """How many steps begin within the first `tokens`. Raises PlanError where none is left to count."""
    if tokens < 0:
        raise PlanError(f"a warm-up of {tokens} tokens: give 0 or more")
    found = int(np.searchsorted(steps.starts[:-1], tokens))
    if found == len(steps.phase):
        raise PlanError(f"a warm-up of {tokens} tokens leaves nothing to count: {trace.path} holds {trace.tokens}")
    return found


def _provenance(trace: Trace, setting: Setting) -> dict[str, Any]:
    return {
        "moe_tracekit": own_version(),
        "trace": str(trace.path),
        "trace_digest": trace.digest,
        "trace_source": trace.manifest.source,
        "batching": None if trace.batching is None else msgspec.to_builtins(trace.batching),
        "plan": setting.plan.to_dict(),
        "hardware": None if setting.machine is None else _apart(setting.machine),
        "engine": None if setting.machine is None else msgspec.to_builtins(setting.machine.engine),
        "model_shape": None if setting.shape is None else setting.shape.name,
        "reshape": setting.reshape,
    }


def _apart(machine: HardwareProfile) -> dict[str, Any]:
    """The machine without its engine."""
    return {key: value for key, value in msgspec.to_builtins(machine).items() if key != "engine"}
