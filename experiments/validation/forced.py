"""Validating time without a checkpoint: random weights of a model's shapes, routed by a recorded trace."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.decisions.misses import measured_host
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from experiments.validation.calibrating import measured_here
from experiments.validation.comparison import Machine, Measured, Tokens, Validation, compare
from experiments.validation.emulated import over_link
from experiments.validation.verdict import RUNS, TOLERANCE, check_runs, check_tolerance
from tracekit.errors import ModelError, PlanError
from tracekit.labels import labels_of
from tracekit.prefix import first_steps
from tracekit.trace import Trace

if TYPE_CHECKING:
    from engine.runtime.links.thread_link import EmulatedLink

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
    device: str = "auto",
    emulate_link: "EmulatedLink | None" = None,
    runs: int = RUNS,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    save_warm: Path | None = None,
    progress: Callable[[str], object] | None = None,
) -> Validation:
    """Run `plan` in the engine and in the simulator on the routing of a trace.

    Args:
        model: a directory with a `config.json`; neither weights nor a tokenizer are read.
        routing: a trace of a model with as many MoE layers and experts, a request at a time.
        hardware: what the simulator assumes; None measures this machine first, as `validate` does.
        steps: the trace's first steps that are run; None runs all.
        runs: times that they are timed, as `validate` does.
        save_warm: as `validate` takes it.

    Decisions and time are compared as `validate` does; tokens are not, being random. Raises TracekitError.
    """
    from engine.decisions.saving import held_by
    from engine.plan.placement import save_placement
    from engine.runtime import offload, offloaded
    from engine.runtime.clocks.device_time import device_time
    from engine.runtime.forced_routing import ForcedRouting, forced_steps
    from engine.runtime.memory import fit_checkpoint, release
    from engine.runtime.storage.random_weights import random_model
    from tracekit.recorder.models import check_experts, find_model, load_config, parse_device, parse_dtype

    check_tolerance(tolerance)
    check_runs(runs)
    if plan.routing.alters:
        raise PlanError(
            f"routing policy {plan.routing.policy!r} alters what gates choose, and here a trace chooses: validate on "
            "prompts, or without it"
        )
    say = progress or (lambda text: None)
    device = str(parse_device(device))
    directory = find_model(model)
    config = load_config(directory)
    check_experts(config, directory)
    plan = fit_checkpoint(directory, plan, dtype=dtype, device=device, limit=None)
    chosen = parse_dtype(dtype)

    def offloaded_model(by: Plan) -> Any:
        made = random_model(config, chosen, seed)
        return offload(made, by, device=device, emulate_link=emulate_link, random_experts=seed, **lane)

    if hardware is not None:
        hardware = over_link(hardware, emulate_link)
    lane: dict[str, Any] = {}
    if plan.miss.where != "copy":
        lane = {"hardware": measured_host(plan.miss, hardware)}
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, config.get_text_config().vocab_size, CALIBRATION_TOKENS).tolist()
    calibrated_here = hardware is None
    profiles = [] if hardware is None else [hardware]
    if calibrated_here:
        say("calibrating")
        profiles.append(measured_here(offloaded_model, plan, [prompt], CALIBRATION_TOKENS))

    made = offloaded_model(plan)
    with offloaded(made) as state:
        distance = state.lookahead_distance
        forced = ForcedRouting(routing, len(state.layers), state.spec.experts, state.top_k, distance)
        count = forced.steps if steps is None else min(steps, forced.steps)
        if count < 1:
            raise ModelError(f"{count} steps cannot be timed: the trace has {forced.steps}")
        logs, timings = [], []
        if plan.placement.by is not None:
            labels = labels_of(routing, plan.placement.labels)
            state.serve([labels[number] for number in dict.fromkeys(routing.request.tolist())])
        for number in range(runs + 1):  # the first warms up
            say(f"timing the offloaded model, run {number} of {runs}" if number else "warming up")
            state.time_by(partial(device_time, state.device))
            for _ in forced_steps(made, forced, count, seed):
                pass
            logs.append(state.log)
            timings.append(state.timings)
        params = [layer.expert_params for layer in state.layers]
        if save_warm is not None:
            per_layer = [layer.num_experts for layer in state.layers]
            save_placement(held_by(state.cache, plan, per_layer, first_steps(routing, count)), save_warm)
        measured = Measured(logs, timings[1:], state.prefetches, state.expert_bytes, params)
        whole = count == forced.steps
    del made, state, forced  # before another copy
    release()
    if calibrated_here and runs > 1:
        say("calibrating again")
        profiles.append(measured_here(offloaded_model, plan, [prompt], CALIBRATION_TOKENS))

    say("simulating")
    return compare(
        f"random weights of {model}, routed by {routing.path}",
        plan,
        first_steps(routing, count),
        measured,
        Machine(profiles, calibrated_here, device, emulate_link),
        tokens=Tokens(compared=0, identical=True, why="weights being random"),
        threshold=threshold,
        tolerance=tolerance,
        whole=whole,
    )
