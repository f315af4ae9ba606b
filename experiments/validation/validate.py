"""Validation: one plan in the engine and in the simulator, on the same prompts; how far do they differ?"""

import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.decisions.run import cache_spec, iter_decisions
from engine.hardware import HardwareProfile
from engine.plan.plan import CachePlan, Plan, WeightsPlan
from engine.plan.weights import WeightFormat
from engine.replay.passes import Replayed, run
from engine.replay.predictor_costs import with_predictors
from engine.simulator.costs import model_costs
from engine.simulator.timeline import LATE, USEFUL, WASTED
from policies.events import Events
from tracekit import Trace
from tracekit.errors import ModelError


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """The two decision logs, compared entry by entry."""

    entries: int
    identical: bool
    first_difference: str | None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Generated tokens of the offloaded and the un-offloaded model."""

    compared: int
    identical: bool


class Prefetches(msgspec.Struct, frozen=True, kw_only=True):
    """What became of prefetches: {"useful", "late", "wasted"} in the simulator and in the engine."""

    simulated: dict[str, int]
    measured: dict[str, int]


class TimeError(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated against measured time of decode steps, in milliseconds and as a share of the measured time.

    `step_error_median` is the median over decode steps of |simulated - measured| / measured; `total_error` the signed
    error of their sum. `layer_error_median` is the same as the first, over visits.
    """

    hardware: str
    calibrated_here: bool
    emulated_link: str | None
    steps: int
    measured_tokens_per_second: float
    simulated_tokens_per_second: float
    step_error_median: float
    layer_error_median: float
    total_error: float
    measured_step_ms: list[float]
    simulated_step_ms: list[float]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `passed`: logs and tokens identical, and the median step error within `threshold` if one is set."""

    model: str
    plan: dict[str, Any]
    decisions: Decisions
    tokens: Tokens
    time: TimeError
    prefetches: Prefetches | None
    threshold: float | None
    passed: bool
    verdict: str
    host: str = "in memory"
    warnings: list[str] = []


def validate(
    model: str | Path,
    plan: Plan,
    prompts: Sequence[Any],
    *,
    hardware: HardwareProfile | None = None,
    calibration_prompts: Sequence[Any] | None = None,
    max_new_tokens: int = 32,
    dtype: str = "auto",
    device: str = "cpu",
    emulate_link: Any = None,
    host: str = "memory",
    slabs: Path | None = None,
    prefill_chunk: int | None = None,
    threshold: float | None = None,
    keep_trace: Path | None = None,
    progress: Callable[[str], object] | None = None,
) -> Validation:
    """Run `plan` in the engine and in the simulator.

    Args:
        hardware: what the simulator assumes; None measures this machine first, with another cache size, on
            `calibration_prompts` (default: the first prompt).
        host, slabs: where experts lie, as `offload` takes it.
        prefill_chunk: tokens of a prompt that are read at a time, each a step; None reads them at once.
        threshold: the largest median step error that passes, as a share; None lets any pass.
        keep_trace: where to keep the engine's own trace; None discards it.

    Raises TracekitError: ModelError, PlanError, HardwareError, ...
    """
    from engine.runtime import offload, offloaded
    from engine.runtime.calibration.engine_costs import calibrate
    from engine.runtime.cpu_lane import check_lane
    from engine.runtime.storage.rounding import rounded
    from tracekit.recorder.models import find_model, load_model, load_tokenizer, parse_device
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import encode_prompts
    from tracekit.recorder.recorder import record, stop_tokens

    if not prompts:
        raise ModelError("there are no prompts to validate on")
    if threshold is not None and not 0 < threshold < float("inf"):
        raise ModelError(f"a threshold of {threshold:g} tests nothing: give a share above 0, such as 0.15")
    lane: dict[str, Any] = {}
    if plan.compute.cpu_experts != "never":
        lane = {"hardware": check_lane(hardware)}  # what is measured on the way here does not know the lane
    say, tables = progress or (lambda text: None), plan.to_dict()
    parse_device(device)
    directory = find_model(model)
    tokenizer = load_tokenizer(directory)
    placed: dict[str, Any] = {"emulate_link": emulate_link, "host": host, "slabs": slabs, "dtype": dtype, "say": say}
    encoded = encode_prompts(prompts, tokenizer)
    calibrated_here = hardware is None
    if hardware is None:
        say("calibrating")
        loaded = offload(directory, calibration_plan(plan), device=device, **placed)
        chosen = encode_prompts(calibration_prompts or prompts[:1], tokenizer)
        hardware = calibrate(loaded, chosen, max_new_tokens=max_new_tokens)
        offloaded(loaded).close()
        del loaded

    say("generating without offloading")
    # On the host: what the device cannot hold is why the model is offloaded.
    loaded, _ = load_model(directory, dtype, "cpu")
    loaded.set_experts_implementation("eager")
    stop = stop_tokens(loaded, tokenizer)
    stored = (plan.weights.experts, plan.weights.attention)
    quantised = any(word is not None and WeightFormat.parse(word).quantised for word in stored)
    if quantised:
        # Formats round weights: what the engine must equal is the model with its weights as they are stored.
        loaded = rounded(loaded, plan.weights, parse_device(device))
    plain = _generate(_on(loaded, device), encoded, max_new_tokens, stop, prefill_chunk)
    del loaded  # before another copy

    loaded = offload(directory, plan, device=device, **placed, **lane)
    state = offloaded(loaded)
    with tempfile.TemporaryDirectory() as folder, state:
        say("recording the offloaded model")
        path = keep_trace or Path(folder) / "engine.trace"
        ahead = () if state.lookahead_distance is None else (state.lookahead_distance,)
        options = RecordOptions(max_new_tokens=max_new_tokens, lookahead=ahead, prefill_chunk=prefill_chunk)
        trace = Trace.open(record(loaded, tokenizer, prompts, path, options))
        recorded = state.log

        say("timing the offloaded model")
        state.reset()
        generated = _generate(loaded, encoded, max_new_tokens, stop, prefill_chunk)
        timings, timed, fates = state.timings, state.log, state.prefetches

        say("simulating")
        # The trace counts what the model was loaded with, the engine what it stores.
        trace = trace.with_manifest(msgspec.structs.replace(trace.manifest, expert_bytes=state.expert_bytes))
        plan = msgspec.structs.replace(plan, weights=WeightsPlan())
        decisions = compare_logs(simulated_log(trace, plan), recorded)
        if decisions.identical:
            again = compare_logs(timed, recorded)
            if not again.identical:
                decisions = msgspec.structs.replace(
                    again, first_difference=f"the engine differs from its own first run: {again.first_difference}"
                )
        tokens = Tokens(compared=sum(map(len, plain)), identical=plain == generated)
        costs = model_costs(trace.manifest, hardware, None, None, None, plan.compute.cpu_experts, stored[0])
        costs = with_predictors(costs, plan, hardware)
        simulated = run(trace, plan, costs)
        time = time_error(trace, timings, simulated, hardware, calibrated_here, emulate_link)
    slow = threshold is not None and time.step_error_median > threshold
    passed = decisions.identical and tokens.identical and not slow
    return Validation(
        model=str(model),
        plan=tables,
        decisions=decisions,
        tokens=tokens,
        time=time,
        prefetches=fates_of(simulated, fates),
        threshold=threshold,
        passed=passed,
        verdict=verdict(decisions, tokens, time, threshold),
        host="in memory" if slabs is None else f"on disk, in {slabs}",
        warnings=[] if calibrated_here else profile_warnings(hardware, device),
    )


def calibration_plan(plan: Plan) -> Plan:
    """The plan that calibration runs: the same policies, whose own work costs time, with another cache size."""
    return msgspec.structs.replace(plan, cache=CachePlan(capacity="75%/layer"))


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
    model: Any, encoded: Sequence[list[int]], count: int, stop: frozenset[int], chunk: int | None
) -> list[list[int]]:
    from tracekit.recorder.generation import Decoding

    found = []
    for prompt in encoded:
        decoding = Decoding(model, [prompt], max_new_tokens=count, stop=stop, chunk=chunk)
        for _ in decoding.passes():
            pass
        found.append(decoding.generated[0])
    return found


def simulated_log(trace: Trace, plan: Plan) -> Events:
    spec = cache_spec(trace.manifest.experts_per_layer, trace.manifest.expert_bytes, plan)
    return Events.join([events for _, events in iter_decisions(trace, spec)])


def time_error(
    trace: Trace, timings: Any, simulated: Any, hardware: HardwareProfile, calibrated_here: bool, link: Any
) -> TimeError:
    if len(timings.step_start) != len(simulated.step_ns):
        raise ModelError("the engine ran another number of steps than it recorded: the model is not deterministic")
    decode = simulated.phase == 1
    if not decode.any():
        raise ModelError("no decode steps to time: raise --max-new-tokens")
    measured = (timings.step_end - timings.step_start)[decode].astype(float)
    modelled = simulated.step_ns[decode].astype(float)
    layers = trace.layers
    # A visit ends where the next begins or the step ends; its time runs from the end of the one before.
    ends = timings.visit_end.reshape(-1, layers)
    spans = np.diff(ends, axis=1)[decode].astype(float)
    model_spans = np.diff(simulated.visit_end.reshape(-1, layers), axis=1)[decode].astype(float)
    return TimeError(
        hardware=hardware.name,
        calibrated_here=calibrated_here,
        emulated_link=None if link is None else f"{link.bytes_per_s / 1e9:g} GB/s",
        steps=int(decode.sum()),
        measured_tokens_per_second=float(len(measured) / measured.sum() * 1e9),
        simulated_tokens_per_second=float(len(modelled) / modelled.sum() * 1e9),
        step_error_median=float(np.median(np.abs(modelled - measured) / measured)),
        layer_error_median=float(np.median(np.abs(model_spans - spans) / np.maximum(spans, 1))),
        total_error=float(modelled.sum() / measured.sum() - 1),
        measured_step_ms=(measured / 1e6).round(4).tolist(),
        simulated_step_ms=(modelled / 1e6).round(4).tolist(),
    )


def fates_of(simulated: Replayed, measured: dict[str, int]) -> Prefetches:
    """The simulator's counts beside the engine's."""
    assert simulated.timeline is not None
    counts = simulated.timeline.prefetches
    names = {"useful": USEFUL, "late": LATE, "wasted": WASTED}
    return Prefetches(simulated={name: int(counts[place]) for name, place in names.items()}, measured=measured)


def verdict(decisions: Decisions, tokens: Tokens, time: TimeError, threshold: float | None) -> str:
    logs = f"decision logs {'identical' if decisions.identical else 'DIFFER'} ({decisions.entries} entries)"
    text = f"generated tokens {'identical' if tokens.identical else 'DIFFER'} ({tokens.compared})"
    if tokens.compared == 0:
        text = "no tokens compared, weights being random"
    error = f"time per token off by {100 * time.step_error_median:.1f} % in the median"
    if threshold is not None:
        error += f", {'within' if time.step_error_median <= threshold else 'ABOVE'} the allowed {100 * threshold:g} %"
    return f"{logs}; {text}; {error}"
