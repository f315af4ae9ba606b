"""`tracekit hardware`: the shipped hardware profiles, and any profile by path."""

from typing import Annotated, Literal

import typer

from engine.hardware.profile import HardwareProfile, hardware_names, load_hardware
from experiments.cli import console, options
from tracekit.errors import HardwareError


def command(
    action: Annotated[Literal["list", "show"], typer.Argument(help="list the shipped profiles, or show one")] = "list",
    name: Annotated[str | None, typer.Argument(help="for show: a shipped name, or the path of a .toml file")] = None,
    json: options.Json = False,
) -> None:
    """List the shipped hardware profiles, or show one as the TOML text to start your own from.

    Example: tracekit hardware show rtx3060
    """
    if action == "show":
        if name is None:
            raise HardwareError(f"hardware show needs a profile: one of {', '.join(hardware_names())}, or a .toml file")
        profile = load_hardware(name)
        if json:
            console.emit_json(profile)
        else:
            console.tell(profile.to_toml(), end="")
        return
    if name is not None:
        raise HardwareError(f"hardware list takes no name; to see one profile: tracekit hardware show {name}")
    profiles = [load_hardware(shipped) for shipped in hardware_names()]
    if json:
        console.emit_json({"profiles": profiles})
        return
    columns = ["name", "memory GiB", "memory GB/s", "TFLOPS", "link GB/s", "ms per layer", "description"]
    console.table("Hardware profiles", columns, [_row(profile) for profile in profiles])


def _row(profile: HardwareProfile) -> list[str]:
    device, link = profile.device, profile.link
    return [
        profile.name,
        f"{device.memory_bytes / 2**30:.0f}",
        f"{device.memory_bandwidth_bytes_per_s / 1e9:.0f}",
        f"{device.compute_flops_per_s / 1e12:.1f}",
        f"{link.host_to_device_bytes_per_s / 1e9:.1f}",
        f"{profile.overhead.per_layer_ns / 1e6:.2f}",
        profile.description,
    ]
