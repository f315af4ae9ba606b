"""A machine is measured into a profile: copies, memory and compute by probes, the engine's overhead on a model."""

import dataclasses
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from msgspec.structs import replace
from torch import nn

from engine.hardware import Device, EngineProfile, HardwareProfile, Link, Rate
from engine.hardware.engine_profile import CALIBRATED
from engine.hardware.roofline import SECOND
from engine.runtime.calibration import host_probes, probes
from engine.runtime.calibration.engine_costs import Workload, engine_costs
from engine.runtime.calibration.expansion import by_kind, check_formats, measure_expansion
from engine.runtime.calibration.power import power
from engine.runtime.calibration.probes import Figure, clamp
from engine.runtime.calibration.repeated import WIDTH, ascending
from engine.runtime.memory import meminfo, release
from engine.runtime.offload_state import offloaded
from tracekit.errors import HardwareError
from tracekit.version import own_version

COPY_SIZES = tuple(1 << power for power in (8, 14, 16, 18, 20, 22, 24, 26))
"""256 bytes, which is all latency, and 16 KiB to 64 MiB."""
TOKENS = (1, 4, 16, 64, 256)
STAGES = 8
ON_CPU = (
    "the link is a thread that copies with memcpy",
    "the CPU lane shares its cores with the device here, which was idle when it was measured",
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured profile and the figures it rests on."""

    profile: HardwareProfile
    figures: tuple[Figure, ...]


def calibrate_machine(
    workloads: Sequence[Workload],
    *,
    dtype: torch.dtype,
    formats: Sequence[str] = (),
    disk: Path | None = None,
    name: str = "this-machine",
    rounds: int = 5,
    repeats: int = 21,
    copy_sizes: Sequence[int] = COPY_SIZES,
    tokens: Sequence[int] = TOKENS,
    advance: Callable[[], object] = lambda: None,
) -> Calibration:
    """Measure this machine; overheads on models that are offloaded to one device, which is what is measured.

    Every probe is repeated `repeats` times, the models run `rounds` times in turns, and both up to `repeated.MOST`
    times as often where medians are not yet known; figures are medians, and say how well they are known. `formats`
    are quantised weight formats whose expansion is measured too, `disk` a directory whose disk is. `advance` is
    called after each of `STAGES` stages.

    Raises HardwareError when a measurement makes no sense, PlanError for an unknown format.
    """
    state = offloaded(workloads[0].model)
    device = state.device
    check_formats(formats)  # before minutes of measuring
    link_figures = probes.copies(device, copy_sizes, repeats)
    pageable = probes.copies(device, copy_sizes[-1:], repeats, pinned=False)[0] if device.type == "cuda" else None
    advance()
    reading = probes.reading(device, repeats)
    readback = probes.readback(device, 10 * repeats)
    advance()
    dense = probes.dense(device, dtype, tokens, repeats)
    advance()
    experts = probes.experts(device, dtype, tokens, repeats)
    advance()
    expanded = [measure_expansion(device, dtype, word, repeats) for word in formats]
    advance()
    lane_figures, cpu = host_probes.cpu_lane(device, dtype, repeats)
    advance()
    disk_figures, read, disk_note = (
        ([], None, "disk: not measured") if disk is None else host_probes.disk(disk, repeats)
    )
    watts, power_note = power(device, product(device, dtype))
    release()  # what probes have left to the allocator, before the models run
    advance()
    bandwidth = dense[0].rate(probes.WIDTH**2 * dtype.itemsize)
    found = engine_costs([counted(one, bandwidth) for one in workloads], rounds)
    advance()

    latency, rates = link_of(copy_sizes, [figure.ns for figure in link_figures])
    flops = experts[-1].rate(2 * probes.expert_params() * tokens[-1])
    gate_readback = readback.ns if device.type == "cuda" else 0.0
    per_layer = found.overhead.per_layer_ns - gate_readback  # it is between two visits, too
    figures = (*link_figures, *([pageable] if pageable else []), reading, *dense, *experts)
    figures = (*figures, *(figure for each, _ in expanded for figure in each))
    figures = (*figures, *lane_figures, *disk_figures, readback, *found.steps)
    unknown = sum(not figure.known for figure in figures)
    models = dict.fromkeys(type(one.model).__name__ for one in workloads)
    profile = HardwareProfile(
        name=name,
        description=f"{describe_device(device)}, measured {datetime.now(UTC):%Y-%m-%d} with {versions()}",
        calibrated=True,
        source=[
            "every figure is a median, with its quartiles in brackets and half its 95 % interval behind",
            f"{unknown} of {len(figures)} medians are NOT known within {100 * WIDTH:g} %",
            f"compute in {str(dtype).removeprefix('torch.')}; weights and copies from memory that no cache holds",
            *(ON_CPU if device.type == "cpu" else ()),
            disk_note,
            power_note,
            *(str(figure) for figure in figures),
        ],
        device=Device(
            memory_bytes=clamp(memory_bytes(device), 1 << 20, 1 << 50),
            memory_bandwidth_bytes_per_s=clamp(bandwidth, 1_000, 10**15),
            compute_flops_per_s=clamp(flops, 10**6, 10**18),
        ),
        disk=read,
        cpu=cpu,
        power=watts,
        link=Link(
            host_to_device_bytes_per_s=rates[-1].bytes_per_s,
            latency_ns=latency,
            copy_engines=state.link.in_flight,
            chunk_bytes=state.link.piece_bytes,
            rates=rates,
            pageable_bytes_per_s=clamp(pageable.rate(copy_sizes[-1]), 1_000, 10**15) if pageable else None,
        ),
        engine=EngineProfile(
            name=CALIBRATED,
            description=f"this project's runtime, measured with {versions()}",
            source=[
                f"overheads: {', '.join(models)}, less what their weights take at the measured bandwidth; "
                f"{found.visits} decode visits, each the median of {found.steps[0].samples} rounds",
            ],
            overhead=replace(
                found.overhead,
                per_layer_ns=clamp(per_layer, 0, 10**10),
                gate_readback_ns=clamp(gate_readback, 0, 10**10),
            ),
            expansions=by_kind([expansion for _, expansion in expanded]),
        ),
    )
    return Calibration(profile, figures)


def product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Work for the device while its power is read."""
    matrix = torch.randn(probes.WIDTH, probes.WIDTH, device=device, dtype=dtype)
    return lambda: matrix @ matrix


def link_of(sizes: Sequence[int], times: Sequence[float]) -> tuple[int, list[Rate]]:
    """Latency (ns) and rates of a link from the times (ns) of copies, sizes ascending; the first is all latency.

    Times that fall with size, which is noise, are replaced by their mean. Sizes that take hardly longer than the
    latency tell no rate and are left out. HardwareError when none is left.
    """
    smooth = ascending(times)
    latency = smooth[0]
    rates: list[Rate] = []
    for size, ns in zip(sizes, smooth, strict=True):
        if ns - latency < latency / 4:
            continue
        rate = clamp(size * SECOND / (ns - latency), 1_000, 10**15)
        if rates:  # equal times may round to falling ones
            rate = min(rate, size * rates[-1].bytes_per_s // rates[-1].bytes)
        rates.append(Rate(bytes=size, bytes_per_s=rate))
    if not rates:
        raise HardwareError("the link cannot be measured: large copies take no longer than small ones; is it busy?")
    return round(latency), rates


def counted(workload: Workload, bandwidth: float) -> Workload:
    """With what the simulator counts of it at this bandwidth (bytes/s): the dense part of a layer, and an expert."""
    layer = offloaded(workload.model).layers[0]
    inside = _layer_of(workload.model, layer.name).parameters()
    dense_bytes = sum(p.numel() * p.element_size() for p in inside if not p.is_meta)
    return dataclasses.replace(
        workload, dense_ns=dense_bytes * SECOND / bandwidth, expert_ns=layer.expert_bytes * SECOND / bandwidth
    )


def describe_device(device: torch.device) -> str:
    """The machine in a few words; `validate` compares what stands before the bracket."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device.type} of {platform.machine()} {platform.system()} ({named})"


def versions() -> str:
    """The versions that a measurement depends on."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "moe-tracekit": own_version()}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def memory_bytes(device: torch.device) -> int:
    """All memory of a device; of the host, where the device is the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return meminfo("MemTotal")


def _layer_of(model: nn.Module, experts_name: str) -> nn.Module:
    """The decoder layer that holds the experts of that name."""
    parts = experts_name.split(".")
    last = max(index for index, part in enumerate(parts) if part.isdigit())
    return model.get_submodule(".".join(parts[: last + 1]))


def summary(calibration: Calibration) -> list[tuple[str, str]]:
    """What was measured, as rows for people."""
    link = calibration.profile.link
    rows = [("link latency", probes.time_text(link.latency_ns))]
    for figure in calibration.figures:
        size = re.fullmatch(r"(?:copy of|reading|disk, reading) (\d+) bytes.*", figure.what)
        rows.append((figure.what, figure.time if size is None else figure.gigabytes(int(size[1]))))
    device = calibration.profile.device
    overhead = calibration.profile.overhead
    for name in ("per_layer_ns", "per_step_ns", "per_expert_ns", "per_copy_ns", "per_lookahead_ns"):
        rows.append((f"overhead.{name}", probes.time_text(getattr(overhead, name))))
    rows.append(("memory bandwidth", f"{device.memory_bandwidth_bytes_per_s / 1e9:.2f} GB/s (dense, 1 tokens)"))
    rows.append(("arithmetic", f"{device.compute_flops_per_s / 1e9:.1f} GFLOP/s (expert, {TOKENS[-1]} tokens)"))
    return rows
