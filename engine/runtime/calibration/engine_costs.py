"""The engine's own costs on this machine, by least squares over the visits of a running model.

`machine_profile` takes the overheads from here and measures all else apart. `calibrate` makes a profile of the running
engine alone, with its link, emulated or not, and wherever its experts lie: quick, and for that model only.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from scipy.optimize import nnls
from transformers import PreTrainedModel

from engine.hardware import Device, HardwareProfile, Link, Overhead
from engine.hardware.roofline import SECOND
from engine.runtime.calibration.probes import burst, clamp, copies_at_once, timed
from engine.runtime.clocks.device_time import DeviceTime, device_time
from engine.runtime.clocks.timing import Timings
from engine.runtime.offload_state import OffloadState, offloaded
from policies.events import BYPASS, LOAD, PREFETCH
from tracekit.errors import HardwareError
from tracekit.recorder.generation import Decoding

REPEATS = 31
UNLIMITED = 10**15


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What the engine takes beside copies, its layers' dense part included; `visits` decode visits were measured."""

    overhead: Overhead
    per_pair_ns: float
    """A further token of an expert."""
    visits: int


def engine_costs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    time: Callable[[], DeviceTime] | None = None,
) -> EngineCosts:
    """Measure an offloaded model while it decodes `prompts` (token ids), by the clock of its device or by `time`.

    They are decoded twice. The second pass gives the median time between two visits (dense part and overhead), and by
    least squares what a visit takes, waiting left out, per visit, per expert, per (token, expert) and per copy. All by
    the device's own clock: on a GPU the host's tells only when work was handed over.
    """
    state = offloaded(model)
    for _ in range(2):
        state.time_by(time or partial(device_time, state.device))
        run_prompts(model, prompts, max_new_tokens)
    timings = state.timings
    experts, pairs, copies = _work(state)
    duration = (timings.visit_end - timings.visit_start - timings.visit_waited).astype(float)
    decode = timings.step_tokens[timings.visit_step] == 1
    per_expert, per_pair, per_copy = _fit(duration, experts, pairs, copies)
    gap = _gaps(timings, decode)
    # The median visit of decode steps is hit exactly; the fit only says how time grows with experts and tokens.
    typical = float(np.median((duration - per_expert * experts - per_copy * copies)[decode]))
    overhead = Overhead(
        per_layer_ns=clamp(gap + max(typical, 0.0), 0, 10**10),
        per_step_ns=clamp(_step_rest(timings, gap), 0, 10**10),
        gate_readback_ns=0,
        per_copy_ns=clamp(per_copy, 0, 10**10),
        per_expert_ns=clamp(per_expert, 0, 10**10),
        # Where the plan has a predictor it ran in what was measured; elsewhere its cost stays an assumption.
        **({"per_prediction_ns": 0} if state.predicts else {}),
    )
    return EngineCosts(overhead, per_pair, int(decode.sum()))


def calibrate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 48, name: str = "this-machine"
) -> HardwareProfile:
    """A profile of an offloaded model at work: `engine_costs`, and its link by copies of whole and quarter slabs.

    Raises HardwareError when the measurements make no sense, as on a machine too busy to measure.
    """
    state, costs = offloaded(model), engine_costs(model, prompts, max_new_tokens)
    latency, rate = measure_link(state)
    arithmetic = 2 * state.layers[0].expert_params * SECOND / max(costs.per_pair_ns, 1.0)
    return HardwareProfile(
        name=name,
        description=f"{state.device.type} of {platform.machine()} {platform.system()}, "
        f"measured with {type(model).__name__}",
        calibrated=True,
        source=[
            f"measured on the engine's own steps: {costs.visits} decode visits of {len(prompts)} prompts",
            f"link: copies of {state.store.slab_bytes} bytes and of a quarter, {copies_at_once(state.link)} in a row, "
            f"medians of {REPEATS}" + ("" if state.emulated is None else "; the link is emulated"),
            "overhead.per_layer_ns holds a layer's dense part too; device rates are such that only arithmetic counts",
        ],
        device=Device(
            memory_bytes=1 << 40,
            memory_bandwidth_bytes_per_s=UNLIMITED,
            compute_flops_per_s=clamp(arithmetic, 10**6, 10**18),
        ),
        link=Link(
            host_to_device_bytes_per_s=clamp(rate, 1_000, UNLIMITED),
            latency_ns=latency,
            copy_engines=state.link.in_flight,
            chunk_bytes=state.link.piece_bytes,
        ),
        overhead=costs.overhead,
    )


def run_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Continue each prompt greedily by `max_new_tokens`, one at a time; returns the new tokens."""
    found = []
    for prompt in prompts:
        decoding = Decoding(model, [prompt], max_new_tokens=max_new_tokens)
        for _ in decoding.passes():
            pass
        found.append(decoding.generated[0])
    return found


def measure_link(state: OffloadState, time: Callable[[], DeviceTime] | None = None) -> tuple[int, float]:
    """Latency (ns) and rate (bytes/s) of the link, from copies of two sizes."""
    size = state.store.slab_bytes
    small = max(64, size // 4)
    count = min(copies_at_once(state.link), state.cache.slots)
    if count < min(2, copies_at_once(state.link)) or size < 2 * small:
        raise HardwareError("the link cannot be measured: experts are too small or slots too few")
    clock = time or partial(device_time, state.device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):  # both each time, so that a drift of the machine's speed falls on both sizes alike
        for found, length in zip(times, (size, small), strict=True):
            copies = [(state.store.slab(key, length), state.pool.slab(key, length)) for key in range(count)]
            found.append(timed(clock(), partial(burst, state.link, copies), ahead=True) / count)
    state.reset()
    whole, part = (median(found) for found in times)
    if whole - part < part / 100:
        # Experts so small that their size does not matter: a copy is all latency.
        return round(whole), float(UNLIMITED)
    rate = (size - small) * SECOND / (whole - part)
    return max(0, round(part - small * SECOND / rate)), rate


def _work(state: OffloadState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts, (token, expert) pairs and copies asked for, of each visit."""
    log, timings = state.log, state.timings
    experts = np.bincount(log.visit[log.kind <= BYPASS], minlength=len(timings.visit_layer))
    pairs = timings.step_tokens[timings.visit_step] * state.top_k
    asked = np.isin(log.kind, (LOAD, BYPASS, PREFETCH))
    copies = np.bincount(log.visit[asked], minlength=len(timings.visit_layer))
    return experts.astype(float), pairs.astype(float), copies.astype(float)


def _fit(
    duration: np.ndarray, experts: np.ndarray, pairs: np.ndarray, copies: np.ndarray
) -> tuple[float, float, float]:
    """Time of a visit per expert, pair and copy, by least squares, none negative; relative errors count."""
    weight = 1 / np.maximum(duration, 1.0)
    columns = np.stack([np.ones_like(experts), experts, pairs, copies], axis=1)
    fitted, _ = nnls(columns * weight[:, None], duration * weight)
    _, per_expert, per_pair, per_copy = (float(value) for value in fitted)
    return per_expert, per_pair, per_copy


def _gaps(timings: Timings, decode: np.ndarray) -> float:
    """Median time from the end of a visit to the start of the next of the same decode step."""
    same = (np.diff(timings.visit_step) == 0) & decode[1:]
    gaps = (timings.visit_start[1:] - timings.visit_end[:-1])[same]
    return float(np.median(gaps)) if len(gaps) else 0.0


def _step_rest(timings: Timings, gap: float) -> float:
    """Median time of a decode step outside its visits and the gaps between them."""
    found = []
    for step in np.flatnonzero(timings.step_tokens == 1):
        mine = timings.visit_step == step
        if mine.any():
            inside = int(timings.visit_end[mine][-1] - timings.visit_start[mine][0])
            found.append(int(timings.step_end[step] - timings.step_start[step]) - inside - gap)
    return max(0.0, float(np.median(found))) if found else 0.0
