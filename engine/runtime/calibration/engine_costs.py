"""The engine's own costs on this machine, by least squares over the visits of running models.

`machine_profile` takes the overheads from here and measures all else apart. `calibrate` makes a profile of the running
engine alone, with its link, emulated or not, and wherever its experts lie: quick, and for that model only.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from transformers import PreTrainedModel

from engine.hardware import Device, EngineProfile, HardwareProfile, Link, Overhead
from engine.hardware.engine_profile import CALIBRATED
from engine.hardware.roofline import SECOND
from engine.runtime.calibration.probes import Figure, burst, clamp, copies_at_once, timed
from engine.runtime.calibration.repeated import repeated
from engine.runtime.calibration.visits import Visits, fit_gaps, fit_visits
from engine.runtime.clocks.device_time import DeviceTime, device_time
from engine.runtime.clocks.timing import Timings
from engine.runtime.offload_state import OffloadState, offloaded
from tracekit.errors import HardwareError
from tracekit.recorder.generation import Decoding

REPEATS = 31
UNLIMITED = 10**15


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """An offloaded model and what it continues, `tokens` at most for each prompt (token ids).

    `dense_ns` and `expert_ns` are what the simulator will count for a layer's dense weights and for an expert anyway,
    so that no overhead holds it.
    """

    model: PreTrainedModel
    prompts: Sequence[Sequence[int]]
    tokens: int
    dense_ns: float = 0.0
    expert_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What the engine takes beside copies and what workloads count; `visits` decode visits were measured.

    `steps` says how long the decode steps of one round took, by workload: medians, and how well they are known.
    """

    overhead: Overhead
    per_pair_ns: float
    """A further token of an expert."""
    visits: int
    steps: tuple[Figure, ...]


def engine_costs(
    workloads: Sequence[Workload], rounds: int = 1, time: Callable[[], DeviceTime] | None = None
) -> EngineCosts:
    """Measure offloaded models while they decode, in turns, by the clock of their device or by `time`.

    One round warms up. Then `rounds` rounds or more (engine.runtime.calibration.repeated), of which every visit and
    step has its median. All by the device's own clock: on a GPU the host's tells only when work was handed over.

    By least squares over visits: what a visit takes, waiting left out, per expert, per (token, expert), per copy and
    where a later gate is asked. The median time between two visits is the dense part's. Medians of parts do not add up
    to the median of the whole, since parts are skewed: what whole decode steps take beyond the parts is per layer, too.
    """
    states = [offloaded(one.model) for one in workloads]
    timings: list[list[Timings]] = [[] for _ in workloads]

    def turn(number: int) -> list[float]:
        found = []
        for state, one, kept in zip(states, workloads, timings, strict=True):
            state.time_by(time or partial(device_time, state.device))
            run_prompts(one.model, one.prompts, one.tokens)
            kept.append(state.timings)
            last = kept[-1]
            found.append(float((last.step_end - last.step_start)[last.step_tokens == 1].sum()))
        return found

    samples = repeated(turn, rounds)
    visits = [
        Visits.of(state, kept[1:], one.dense_ns, one.expert_ns)
        for state, one, kept in zip(states, workloads, timings, strict=True)
    ]
    work = fit_visits(visits)
    gap, ahead = fit_gaps(visits)
    per_step = float(np.mean([one.step_rest(gap) for one in visits]))
    # The median visit of decode steps is hit exactly; the fit only says how time grows with experts and tokens.
    typical = float(np.median(np.concatenate([(one.duration - one.explained(work))[one.decode] for one in visits])))
    per_layer = gap + max(typical, 0.0)
    lookahead = ahead + work.lookahead
    beyond = [one.beyond(work, per_layer, per_step, ahead) for one in visits]
    overhead = Overhead(
        per_layer_ns=clamp(per_layer + float(np.mean(beyond)), 0, 10**10),
        per_step_ns=clamp(per_step, 0, 10**10),
        gate_readback_ns=0,
        per_copy_ns=clamp(work.copy, 0, 10**10),
        per_expert_ns=clamp(work.expert, 0, 10**10),
        per_lookahead_ns=clamp(lookahead, 0, 10**10),
        # Where the plan has a predictor it ran in what was measured; elsewhere its cost stays an assumption.
        **({"per_prediction_ns": 0} if any(state.predicts for state in states) else {}),
    )
    steps = tuple(
        Figure.of(f"decode steps of {type(one.model).__name__}, {state.spec.prefetch} prefetching", found)
        for one, state, found in zip(workloads, states, samples, strict=True)
    )
    return EngineCosts(overhead, work.pair, sum(int(one.decode.sum()) for one in visits), steps)


def calibrate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 48, name: str = "this-machine"
) -> HardwareProfile:
    """A profile of an offloaded model at work: `engine_costs`, and its link by copies of whole and quarter slabs.

    Raises HardwareError when the measurements make no sense, as on a machine too busy to measure.
    """
    state, costs = offloaded(model), engine_costs([Workload(model, prompts, max_new_tokens)])
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
            "device rates are such that only arithmetic counts",
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
        engine=EngineProfile(
            name=CALIBRATED,
            description=f"this project's runtime with {type(model).__name__}",
            source=["overhead.per_layer_ns holds a layer's dense part too: for this model only"],
            overhead=costs.overhead,
        ),
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
