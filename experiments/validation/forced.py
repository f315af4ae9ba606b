"""Validating time without a checkpoint: random weights of a model's shapes, routed by a recorded trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.decisions.run import cache_spec, iter_decisions
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan, WeightsPlan
from engine.replay.passes import Replayed, run
from engine.replay.predictor_costs import with_predictors
from engine.simulator.costs import model_costs
from experiments.validation.validate import (
    Tokens,
    Validation,
    calibration_plan,
    compare_logs,
    fates_of,
    profile_warnings,
    time_error,
    verdict,
)
from policies.events import Events
from tracekit import Trace
from tracekit.errors import ModelError

CALIBRATION_TOKENS = 32


def validate_routing(
    model: str | Path,
    plan: Plan,
    routing: Trace,
    *,
    hardware: HardwareProfile | None = None,
    steps: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "cpu",
    emulate_link: Any = None,
    threshold: float | None = None,
    progress: Callable[[str], object] | None = None,
) -> Validation:
    """Run `plan` in the engine and in the simulator on the routing of a trace.

    Args:
        model: a directory with a `config.json`; neither weights nor a tokenizer are read.
        routing: a trace of a model with as many MoE layers and experts, a request at a time.
        hardware: what the simulator assumes; None measures this machine first, as `validate` does.
        steps: the trace's first steps that are run; None runs all.

    Decisions and time are compared as `validate` does; tokens are not, being random. Raises TracekitError.
    """
    from engine.runtime import offload, offloaded
    from engine.runtime.calibration.engine_costs import calibrate
    from engine.runtime.cpu_lane import check_lane
    from engine.runtime.forced_routing import ForcedRouting, forced_steps
    from engine.runtime.storage.random_weights import random_model
    from tracekit.recorder.models import check_experts, find_model, load_config, parse_device, parse_dtype

    say = progress or (lambda text: None)
    parse_device(device)
    directory = find_model(model)
    config = load_config(directory)
    check_experts(config, directory)
    chosen = parse_dtype(dtype)

    def offloaded_model(by: Plan) -> Any:
        made = random_model(config, chosen, seed)
        return offload(made, by, device=device, emulate_link=emulate_link, random_experts=seed, **lane)

    lane: dict[str, Any] = {}
    if plan.compute.cpu_experts != "never":
        lane = {"hardware": check_lane(hardware)}
    calibrated_here = hardware is None
    if hardware is None:
        say("calibrating")
        made = offloaded_model(calibration_plan(plan))
        rng = np.random.default_rng(seed)
        prompt = rng.integers(0, config.get_text_config().vocab_size, CALIBRATION_TOKENS).tolist()
        with offloaded(made):
            hardware = calibrate(made, [prompt], max_new_tokens=CALIBRATION_TOKENS)

    say("timing the offloaded model")
    made = offloaded_model(plan)
    with offloaded(made) as state:
        distance = state.lookahead_distance
        forced = ForcedRouting(routing, len(state.layers), state.spec.experts, state.top_k, distance)
        count = forced.steps if steps is None else min(steps, forced.steps)
        for _ in range(2):  # the first time warms up
            state.reset()
            for _ in forced_steps(made, forced, count, seed):
                pass
        timings, log, layers, fates = state.timings, state.log, len(state.layers), state.prefetches
        sizes = {
            "expert_bytes": state.expert_bytes,
            "expert_params": [layer.expert_params for layer in state.layers],
        }

    say("simulating")
    routing.manifest = msgspec.structs.replace(routing.manifest, **sizes)
    as_stored = msgspec.structs.replace(plan, weights=WeightsPlan())
    decisions = compare_logs(simulated_events(routing, as_stored, count * layers), log)
    costs = model_costs(
        routing.manifest, hardware, None, None, None, plan.compute.cpu_experts, stored=plan.weights.experts
    )
    costs = with_predictors(costs, as_stored, hardware)
    simulated = first_steps(run(routing, as_stored, costs), count)
    time = time_error(routing, timings, simulated, hardware, calibrated_here, emulate_link)
    tokens = Tokens(compared=0, identical=True)
    slow = threshold is not None and time.step_error_median > threshold
    return Validation(
        model=f"random weights of {model}, routed by {routing.path}",
        plan=plan.to_dict(),
        decisions=decisions,
        tokens=tokens,
        time=time,
        prefetches=fates_of(simulated, fates) if count == forced.steps else None,
        threshold=threshold,
        passed=decisions.identical and not slow,
        verdict=verdict(decisions, tokens, time, threshold),
        warnings=[] if calibrated_here else profile_warnings(hardware, device),
    )


def simulated_events(trace: Trace, plan: Plan, visits: int) -> Events:
    """What the simulator decides at the first `visits` visits."""
    spec = cache_spec(trace.manifest.experts_per_layer, trace.manifest.expert_bytes, plan)
    pieces, seen = [], 0
    for demand, events in iter_decisions(trace, spec):
        pieces.append(events)
        seen += demand.visits
        if seen >= visits:
            break
    whole = Events.join(pieces)
    return Events(whole.code[: int(whole.start[visits])], whole.start[: visits + 1], whole.first_visit, whole.orderly)


def first_steps(replayed: Replayed, steps: int) -> Replayed:
    """The first steps of what a replay timed."""
    if steps < 1 or len(replayed.step_ns) < steps:
        raise ModelError(f"{steps} steps cannot be timed: the trace has {len(replayed.step_ns)}")
    layers = len(replayed.visit_end) // len(replayed.step_ns)
    replayed.phase, replayed.step_ns = replayed.phase[:steps], replayed.step_ns[:steps]
    replayed.visit_end = replayed.visit_end[: steps * layers]
    return replayed
