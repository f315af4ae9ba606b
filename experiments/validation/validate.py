"""Validation: one plan in the engine and in the simulator, on the same prompts; how far do they differ?"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.decisions.misses import measured_host
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from experiments.validation.calibrating import measured_here
from experiments.validation.comparison import Machine, Measured, Tokens, Validation, compare, engine_setting
from experiments.validation.emulated import over_link
from experiments.validation.orders import compare_orders
from experiments.validation.prior import against_prior
from experiments.validation.verdict import RUNS, TOLERANCE, check_runs, check_tolerance
from policies.registry import prefetcher
from tracekit.errors import ModelError, PlanError
from tracekit.notes import altered_note
from tracekit.trace import Trace

if TYPE_CHECKING:
    from engine.runtime.links.thread_link import EmulatedLink
    from tracekit.recorder.sampling import Sampling


def validate(
    model: str | Path,
    plan: Plan,
    prompts: Sequence[Any],
    *,
    hardware: HardwareProfile | None = None,
    calibration_prompts: Sequence[Any] | None = None,
    max_new_tokens: int = 32,
    dtype: str = "auto",
    device: str = "auto",
    emulate_link: "EmulatedLink | None" = None,
    host: str = "memory",
    slabs: Path | None = None,
    prefill_chunk: int | None = None,
    runs: int = RUNS,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    sampling: "Sampling | None" = None,
    keep_trace: Path | None = None,
    save_warm: Path | None = None,
    progress: Callable[[str], object] | None = None,
) -> Validation:
    """Run `plan` in the engine and in the simulator.

    Args:
        hardware: what the simulator assumes; None measures this machine first, with another cache size, on
            `calibration_prompts` (default: the first prompt).
        host, slabs: where experts lie, as `offload` takes it.
        prefill_chunk: tokens of a prompt that are read at a time, each a step; None reads them at once.
        emulate_link: how the engine's copies are slowed down; those of a given `hardware` are, too.
        runs: times that the engine runs; with more than one, a machine that is measured here is measured again after
            them, so that a drift of the machine shows in the spread.
        threshold: the largest error of time that passes, as a share; None lets any pass.
        sampling: how tokens are drawn, on both sides from the same numbers; None: greedily.
        tolerance: how far time may be off, as a share, without a warning (`experiments.validation.verdict`).
        keep_trace: where to keep the engine's own trace; None discards it.
        save_warm: where to write what the engine's cache holds at the end, as a placement.

    Raises TracekitError: ModelError, PlanError, HardwareError, ...
    """
    from engine.decisions.saving import held_by
    from engine.plan.placement import save_placement
    from engine.runtime import offload, offloaded
    from engine.runtime.clocks.device_time import device_time
    from engine.runtime.experts import grouped
    from engine.runtime.memory import check_unoffloaded, release
    from engine.runtime.storage.rounding import rounded
    from tracekit.recorder.models import find_model, load_model, load_tokenizer, parse_device
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import encode_prompts
    from tracekit.recorder.recorder import record, stop_tokens

    if not prompts:
        raise ModelError("there are no prompts to validate on")
    if plan.placement.by is not None and not any(prompt.domain for prompt in prompts):
        raise PlanError('placement.by = "label": no prompt says its domain: give them as {"id", "prompt", "domain"}')
    if threshold is not None and not 0 < threshold < float("inf"):
        raise ModelError(f"a threshold of {threshold:g} tests nothing: give a share above 0, such as 0.15")
    check_tolerance(tolerance)
    check_runs(runs)
    if hardware is not None:
        hardware = over_link(hardware, emulate_link)
    lane: dict[str, Any] = {}
    if plan.miss.where != "copy":
        lane = {"hardware": measured_host(plan.miss, hardware)}  # what is measured on the way here knows no host's part
    say = progress or (lambda text: None)
    device = str(parse_device(device))
    directory = find_model(model)
    tokenizer = load_tokenizer(directory)
    placed: dict[str, Any] = {"emulate_link": emulate_link, "host": host, "slabs": slabs, "dtype": dtype, "say": say}
    encoded = encode_prompts(prompts, tokenizer)
    check_unoffloaded(directory, dtype)
    chosen = encode_prompts(calibration_prompts or prompts[:1], tokenizer)
    load = partial(offload, directory, device=device, **placed)
    calibrated_here = hardware is None
    profiles = [] if hardware is None else [hardware]
    if calibrated_here:
        say("calibrating")
        profiles.append(measured_here(load, plan, chosen, max_new_tokens))

    say("generating without offloading")
    # On the host: what the device cannot hold is why the model is offloaded.
    loaded, _ = load_model(directory, dtype, "cpu")
    grouped.register()
    # What the engine must equal bit for bit: the same kernels over experts that are all there.
    loaded.set_experts_implementation(grouped.IMPLEMENTATION if plan.compute.grouped else "eager")
    stop = stop_tokens(loaded, tokenizer)
    stored = (plan.weights.experts, plan.weights.attention)
    if any(word is not None and WeightFormat.parse(word).quantised for word in stored):
        # Formats round weights: what the engine must equal is the model with its weights as they are stored.
        loaded = rounded(loaded, plan.weights, parse_device(device))
    drawn = {} if sampling is None else {"do_sample": True, **asdict(sampling)}
    options = RecordOptions(max_new_tokens=max_new_tokens, prefill_chunk=prefill_chunk, **drawn)
    with tempfile.TemporaryDirectory() as folder:
        plain: list[list[int]] | None = None
        if not plan.exact:
            # The altered model is another one: of the model itself only its gates are of interest.
            reads = prefetcher(plan.prefetch.predictor).reads == "lookahead"
            known = replace(options, logits=True, lookahead=(plan.prefetch.distance,) if reads else ())
            unaltered = record(_on(loaded, device), tokenizer, prompts, Path(folder) / "unaltered.trace", known)
        else:
            plain = _generate(_on(loaded, device), encoded, max_new_tokens, stop, prefill_chunk, sampling)
        del loaded  # before another copy
        release()
        path = keep_trace or Path(folder) / "engine.trace"
        loaded = offload(directory, plan, device=device, **placed, **lane)
        with offloaded(loaded) as state:
            say("recording the offloaded model")
            ahead = () if state.lookahead_distance is None else (state.lookahead_distance,)
            own = replace(options, lookahead=ahead)
            notes = [altered_note(plan.routing.policy)] if plan.routing.alters else []
            state.serve([prompt.domain for prompt in prompts])
            trace = Trace.open(record(loaded, tokenizer, prompts, path, own, notes=notes))
            if save_warm is not None:
                per_layer = [layer.num_experts for layer in state.layers]
                save_placement(held_by(state.cache, plan, per_layer, trace), save_warm)
            logs, timings, identical = [state.log], [], True
            for number in range(runs):
                say(f"timing the offloaded model, run {number + 1} of {runs}")
                state.time_by(partial(device_time, state.device))
                generated = _generate(loaded, encoded, max_new_tokens, stop, prefill_chunk, sampling)
                identical &= plain is None or generated == plain
                logs.append(state.log)
                timings.append(state.timings)
            params = [layer.expert_params for layer in state.layers]
            altered = state.altered
            measured = Measured(logs, timings, state.prefetches, state.expert_bytes, params)
        del loaded, state  # before another copy
        release()
        if calibrated_here and runs > 1:
            say("calibrating again")
            profiles.append(measured_here(load, plan, chosen, max_new_tokens))

        say("simulating")
        found = compare(
            str(model),
            plan,
            trace,
            measured,
            Machine(profiles, calibrated_here, device, emulate_link),
            tokens=Tokens(compared=0, identical=True, why=_another(plan))
            if plain is None
            else Tokens(compared=sum(map(len, plain)), identical=identical),
            threshold=threshold,
            tolerance=tolerance,
            host="in memory" if slabs is None else f"on disk, in {slabs}",
        )
        if not plan.exact:
            setting = engine_setting(trace, plan, measured, profiles[0])
            orders = compare_orders(plan, setting, Trace.open(unaltered), trace, altered)
            return msgspec.structs.replace(found, routing=orders)
        checked = against_prior(trace, plan, profiles[0], found.time.measured_tokens_per_second)
        return msgspec.structs.replace(found, prior=checked)


def _another(plan: Plan) -> str:
    """Why a plan's tokens are not those of the un-offloaded model."""
    if plan.routing.alters:
        return "routing being altered: it is another model"
    return "since what the cache holds says which copy of an expert serves"


def _on(model: Any, device: str) -> Any:
    """The un-offloaded model on the device. Raises ModelError when it does not fit there."""
    import torch

    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"the un-offloaded model does not fit on {device}, so there are no tokens to compare with; "
            "validate on a smaller model of the same family"
        ) from None


def _generate(
    model: Any,
    encoded: Sequence[list[int]],
    count: int,
    stop: frozenset[int],
    chunk: int | None,
    sampling: "Sampling | None",
) -> list[list[int]]:
    from tracekit.recorder.generation import Decoding

    found = []
    for number, prompt in enumerate(encoded):
        drawn = None if sampling is None else sampling.samplers(number, 1)
        decoding = Decoding(model, [prompt], max_new_tokens=count, stop=stop, samplers=drawn, chunk=chunk)
        for _ in decoding.passes():
            pass
        found.append(decoding.generated[0])
    return found
