"""`tracekit hardware`: the shipped profiles of machines and engines, and any profile by path."""

from typing import Annotated, Literal

import typer

from engine.hardware.engine_profile import EngineProfile, engine_names, load_engine
from engine.hardware.profile import HardwareProfile, hardware_names, load_hardware
from experiments.cli import console, options
from tracekit.errors import HardwareError


def command(
    action: Annotated[
        Literal["list", "show", "engines"],
        typer.Argument(help="list the shipped machines, show one, or list the shipped engines"),
    ] = "list",
    name: Annotated[str | None, typer.Argument(help="for show: a shipped name, or the path of a .toml file")] = None,
    engine: options.Engine = None,
    json: options.Json = False,
) -> None:
    """List the shipped hardware or engine profiles, or show a machine as the TOML text to start your own from.

    What is shown carries its engine, too, so that your own machine's times do not depend on its name.

    Example: tracekit hardware show rtx3060
    """
    if action == "show":
        if name is None:
            raise HardwareError(f"hardware show needs a profile: one of {', '.join(hardware_names())}, or a .toml file")
        profile = load_hardware(name, engine)
        if json:
            console.emit_json(profile)
        else:
            console.tell(profile.to_toml(), end="")
        return
    if name is not None:
        raise HardwareError(f"hardware {action} takes no name; to see one profile: tracekit hardware show {name}")
    if action == "engines":
        _list_engines(json=json)
        return
    profiles = [load_hardware(shipped) for shipped in hardware_names()]
    if json:
        console.emit_json({"profiles": profiles})
        return
    columns = ["name", "memory GiB", "memory GB/s", "TFLOPS", "link GB/s", "description"]
    console.table("Hardware profiles", columns, [_row(profile) for profile in profiles])


def _row(profile: HardwareProfile) -> list[str]:
    device, link = profile.device, profile.link
    return [
        profile.name,
        f"{device.memory_bytes / 2**30:.0f}",
        f"{device.memory_bandwidth_bytes_per_s / 1e9:.0f}",
        f"{device.compute_flops_per_s / 1e12:.1f}",
        f"{link.host_to_device_bytes_per_s / 1e9:.1f}",
        profile.description,
    ]


def _list_engines(*, json: bool) -> None:
    engines = [load_engine(shipped) for shipped in engine_names()]
    if json:
        console.emit_json(engines)
        return
    columns = ["name", "us per layer", "us per step", "us per readback", "quantised experts", "description"]
    console.table("Engine profiles", columns, [_engine_row(engine) for engine in engines])


def _engine_row(engine: EngineProfile) -> list[str]:
    overheads = [engine.overhead, *(one.overhead for one in engine.on)]
    times = ([one.per_layer_ns, one.per_step_ns, one.gate_readback_ns] for one in overheads)
    shown = [" or ".join(f"{ns / 1e3:g}" for ns in dict.fromkeys(column)) for column in zip(*times, strict=True)]
    return [engine.name, *shown, engine.quantised, engine.description]
