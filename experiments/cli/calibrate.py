"""`tracekit calibrate`: this machine as a hardware profile that the simulator reads."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tracekit.errors import HardwareError

PROMPTS = (
    "Return a list of the names in the current scope, sorted by",
    "def read(self, size=-1):\n    if self.closed:\n        raise ValueError(",
    "The module defines the following functions and classes:",
)


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="the profile to write (TOML)")],
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    model: Annotated[
        str | None, typer.Option(help="a model whose layers' overhead is measured; without it, a shipped small one")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; without it, float32 on cpu and bfloat16 on cuda")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="quantised formats whose expansion to measure, such as hqq-4bit,hqq-2bit"),
    ] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", help="a directory whose disk to measure, where slabs are to lie")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="times that the model's overhead is measured")] = 3,
    repeats: Annotated[int, typer.Option(min=3, max=10_000, help="times that everything else is measured")] = 21,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="threads that torch computes with")] = None,
    name: Annotated[str, typer.Option(help="name of the profile")] = "this-machine",
    force: Annotated[bool, typer.Option("--force", help="replace an existing file")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Measure this machine: copies by size, memory, compute by tokens, expansion, the host as a lane, disk, overheads,
    and power where it is reported; write a hardware profile.

    Nothing else should run meanwhile. Each figure is printed with its spread, which also stands in the profile.

    Example: tracekit calibrate --output here.toml --device cpu --weights hqq-4bit
    """
    from experiments.cli import console

    check_output(output, force=force)
    if disk is not None and not disk.is_dir():
        raise HardwareError(f"--disk {disk} is no directory: give one on the disk that slabs are to lie on")
    from engine.plan.plan import plan_from_dict
    from engine.runtime import offload, offloaded
    from engine.runtime.calibration.machine_profile import STAGES, calibrate_machine, summary
    from experiments.demo.reference_models import CHECKPOINTS, NAMES
    from tracekit.recorder.models import find_model, load_tokenizer, parse_device, parse_dtype
    from tracekit.recorder.prompts import Prompt, encode_prompts

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    place = parse_device(device)
    chosen: Any = parse_dtype(dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if isinstance(chosen, str):
        raise HardwareError(
            f"--dtype {dtype} is not what compute can be measured in: give float32, bfloat16 or float16"
        )
    directory = find_model(model or CHECKPOINTS / NAMES[0])
    tokenizer = load_tokenizer(directory)
    prompts = encode_prompts([Prompt(id=str(i), prompt=text) for i, text in enumerate(PROMPTS)], tokenizer)
    # Some hits, some loads, and prefetches, so that each has its share in what a visit takes.
    half = plan_from_dict({"cache": {"capacity": "50%/layer"}})
    loaded = offload(directory, half, device=place, dtype=str(chosen).removeprefix("torch."))
    with offloaded(loaded), console.progress("measuring", STAGES) as advance:
        found = calibrate_machine(
            loaded,
            prompts,
            dtype=chosen,
            formats=[word for word in (weights or "").split(",") if word],
            disk=disk,
            name=name,
            rounds=rounds,
            repeats=repeats,
            advance=advance,
        )
    write(output, found.profile.to_toml())
    if json:
        figures = [
            {"what": f.what, "ns": f.ns, "low_ns": f.low_ns, "high_ns": f.high_ns, "samples": f.samples}
            for f in found.figures
        ]
        import msgspec

        console.emit_json({"output": str(output), "profile": msgspec.to_builtins(found.profile), "figures": figures})
        return
    console.table(found.profile.description, ["what", "measured"], summary(found))
    console.say(f"wrote {output}: use it with --hardware {output}")


def check_output(output: Path, *, force: bool) -> None:
    """Refuse at once, before minutes of measuring, what could not be written in the end."""
    if output.is_dir() or (output.exists() and not force):
        raise HardwareError(f"{output} exists: choose another --output" + ("" if output.is_dir() else ", or --force"))
    if not output.absolute().parent.is_dir():
        raise HardwareError(f"cannot write {output}: there is no directory {output.parent}")


def write(output: Path, text: str) -> None:
    """Write a file whole or not at all. Raises HardwareError."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HardwareError(f"cannot write {output}: {error.strerror or error}") from None
