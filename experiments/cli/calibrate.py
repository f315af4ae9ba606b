"""`tracekit calibrate`: this machine as a hardware profile that the simulator reads."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import console, options
from tracekit.errors import HardwareError


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="the profile to write (TOML)")],
    device: options.Device = "auto",
    model: Annotated[
        str | None, typer.Option(help="a model whose layers' overhead is measured; without it, two shipped small ones")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; without it, float32 on cpu and bfloat16 on cuda")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="quantised formats whose expansion to measure, such as hqq-4bit,hqq-2bit"),
    ] = None,
    disk: Annotated[Path | None, typer.Option(help="a directory whose disk to measure, where slabs are to lie")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="times that the models run, at least")] = 5,
    repeats: Annotated[int, typer.Option(min=3, max=10_000, help="times that everything else is measured")] = 21,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="threads that torch computes with")] = None,
    name: Annotated[str, typer.Option(help="name of the profile")] = "this-machine",
    force: Annotated[bool, typer.Option("--force", help="replace an existing file")] = False,
    json: options.Json = False,
) -> None:
    """Measure this machine: copies by size, memory, compute by tokens, expansion, the host as a lane, disk, overheads,
    and power where it is reported; write a hardware profile.

    Nothing else should run meanwhile. Each figure is printed with its spread, which also stands in the profile; what is
    not known within 5 % is measured up to four times as often, and then said not to be.

    Example: tracekit calibrate --output here.toml --device cpu --weights hqq-4bit
    """
    from tracekit.durable import check_place, reporting, write_synced

    check_place(output)
    if output.exists() and not force:
        raise HardwareError(f"{output} exists: choose another --output, or --force")
    if disk is not None and not disk.is_dir():
        raise HardwareError(f"--disk {disk} is no directory: give one on the disk that slabs are to lie on")
    import torch

    from engine.runtime.calibration.machine_profile import STAGES, calibrate_machine, summary
    from experiments.demo.reference_models import CHECKPOINTS, NAMES
    from experiments.measuring import workloads
    from tracekit.recorder.models import find_model, parse_device, parse_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    place = parse_device(device)
    chosen = parse_dtype(dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if not isinstance(chosen, torch.dtype):
        raise HardwareError(
            f"--dtype {dtype} is not what compute can be measured in: give float32, bfloat16 or float16"
        )
    # A gate that is asked ahead has its share in what a visit takes; small models, several at a time, also without.
    names = NAMES if model is None else [model]
    directories = [find_model(CHECKPOINTS / name if model is None else name) for name in names]
    prefetch = ["gate"] if model is not None else ["gate", "none"]
    word = str(chosen).removeprefix("torch.")
    with (
        console.progress("measuring", STAGES) as advance,
        workloads(directories, place, word, prefetch=prefetch) as running,
    ):
        found = calibrate_machine(
            running,
            dtype=chosen,
            formats=[each for each in (weights or "").split(",") if each],
            disk=disk,
            name=name,
            rounds=rounds,
            repeats=repeats,
            advance=advance,
        )
    with reporting(output):
        write_synced(output, lambda file: file.write(found.profile.to_toml().encode()))
    if json:
        console.emit_json({"output": str(output), "profile": found.profile, "figures": found.figures})
        return
    console.table(found.profile.description, ["what", "measured"], summary(found))
    console.tell(f"wrote {output}: use it with --hardware {output}")
