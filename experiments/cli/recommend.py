"""`tracekit recommend`: which plan to run on which machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    from engine.hardware import HardwareProfile
    from experiments.recommend import Recommendation

HERE = "this-machine"


def command(
    model: Annotated[
        str, typer.Argument(help="a model: its directory, config.json or GGUF, or a shipped shape's name; or trace")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(help="recorded routing of the model, or of one with as many experts; without it a prior is drawn"),
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="the machine, repeatable; without it this one is measured, with the model of the directory"),
    ] = None,
    context: options.Context = None,
    batch: options.Sequences = None,
    engine: options.Engine = None,
    reshape: options.Reshape = None,
    tokens: options.PriorTokens = None,
    prompt_tokens: options.PriorPrompt = None,
    requests: options.PriorRequests = None,
    memory: options.Memory = None,
    host_memory: options.HostMemory = None,
    disk_speed: options.DiskSpeed = None,
    weights: Annotated[
        str | None, typer.Option(help="formats to choose from: bf16,hqq-4bit,... or q4_k,mxfp4,...; the engine's own")
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="what formats lose: a JSON file of measurements (docs/sizing.md)")
    ] = None,
    quality_loss: Annotated[
        str | None,
        typer.Option(help="leave out formats that lose more, or of which nothing is known, e.g. 2%"),
    ] = None,
    device: Annotated[str, typer.Option(help="of this machine, if it is measured: auto, cpu, cuda, ...")] = "auto",
    measure_disk: Annotated[
        Path | None, typer.Option(help="a directory whose disk is measured too, if this machine is")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write the fastest plan here; with several machines a folder")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="threads")] = 2,
    json: options.Json = False,
) -> None:
    """Try formats, capacities, policies, prefetchers and misses on the host in the machine's memory; say the fastest.

    The best plan of each format, with an interval over requests, memory by part, what limits it, and what a token
    costs. Modelled, not measured: run the plan with `tracekit validate` where the model is. Experts lie on disk where
    host memory cannot hold them, if it is known how fast that is.

    Without --trace, routing is drawn from what is published of models like it: a prior, not your model, whose interval
    is between the least and the most local of these. Without --hardware this machine is measured, with the model.

    Example: tracekit recommend mixtral-8x7b --trace my.trace --hardware rtx3060 --context 8192 --output best.plan.toml
    """
    from engine.plan.capacity import parse_memory
    from engine.shapes import load_shape
    from experiments.cli.recommended import next_command, plain, show
    from experiments.prior import asked_for, model_of
    from experiments.quality.losses import load_losses
    from experiments.quality.measurement import parse_loss
    from experiments.recommend import FORMATS, recommend, recommend_on_prior
    from experiments.recommend.residence import HostMemory
    from tracekit.errors import PlanError
    from tracekit.trace import Trace

    like = model if trace is None else model_of(trace)
    options.refuse_without_prior(like, tokens, prompt_tokens, requests)
    if like == "trace":
        raise PlanError("which routing? Give --trace, or a model in place of `trace`: routing like its is then drawn")
    opened, limit = Trace.open(trace) if like is None and trace is not None else None, parse_memory(memory)
    room, rate = parse_memory(host_memory, "--host-memory"), options.rate(disk_speed)
    losses = None if quality is None else load_losses(quality)
    most = None if quality_loss is None else parse_loss(quality_loss)
    if most is not None and losses is None:
        raise PlanError("--quality-loss needs to know what formats lose: give --quality too")
    shape = None if model == "trace" else load_shape(model)
    formats = FORMATS if weights is None else tuple(word.strip() for word in weights.split(","))
    named = _named(hardware or [], engine, limit)
    if named and measure_disk is not None:
        raise PlanError("--measure-disk is of this machine: leave out --hardware, or give --disk-speed")
    places = {} if output is None else _places(output, list(named) or [HERE])
    profile = None if named or output is None else _free(beside(output))
    machines = named or {HERE: _measured(model, engine, device, formats, measure_disk, limit)}
    if profile is not None:
        _save(profile, machines[HERE].to_toml())
    found: dict[str, Recommendation] = {}
    for name, machine in machines.items():
        with console.progress(f"trying plans on {name}", None) as advance:
            how: dict[str, Any] = {
                **{"context": context, "batch": batch, "formats": formats, "host": HostMemory.of(machine, room, rate)},
                **{"quality": losses, "quality_loss": most, "reshape": reshape, "workers": workers},
                "progress": advance,
            }
            if opened is not None:
                found[name] = recommend(opened, machine, shape, **how)
            else:
                wanted = asked_for(
                    like or model, tokens=tokens, prompt_tokens=prompt_tokens, requests=requests, batch=batch
                )
                found[name] = recommend_on_prior(wanted, machine, shape, **how)
        if name in places:  # at once: another machine may fail
            _save(places[name], found[name].choices[0].plan.to_toml())
    if json:
        console.emit_json({name: plain(one) for name, one in found.items()})
        return
    for name, one in found.items():
        routing = f"routing of {trace.name}" if opened is not None and trace is not None else "routing drawn"
        show(f"{model} on {name}, {routing}", one)
        if name in places:
            told = str(profile) if profile is not None else (hardware or [name])[list(machines).index(name)]
            console.tell(f"wrote {places[name]}, the fastest of these: {next_command(model, one, places[name], told)}")


def _named(hardware: list[str], engine: str | None, limit: int | None) -> "dict[str, HardwareProfile]":
    """The machines that are named, with no more device memory than `limit`, by name."""
    from msgspec.structs import replace

    from engine.hardware import load_hardware

    found = [load_hardware(name, engine) for name in hardware]
    if limit is not None:
        found = [replace(one, device=replace(one.device, memory_bytes=limit)) for one in found]
    return {machine.name: machine for machine in found}


def _measured(
    model: str, engine: str | None, device: str, formats: tuple[str, ...], disk: Path | None, limit: int | None
) -> "HardwareProfile":
    """This machine, measured with the model."""
    from engine.hardware import load_hardware
    from engine.plan.weights import WeightFormat
    from experiments.measuring import STAGES, measured_machine

    expanded = [word for word in formats if WeightFormat.parse(word).group]
    with console.progress("measuring this machine", STAGES) as advance:
        machine = measured_machine(model, device=device, formats=expanded, disk=disk, memory=limit, advance=advance)
    return load_hardware(machine, engine)


def _save(place: Path, text: str) -> None:
    from tracekit.durable import reporting, write_synced

    with reporting(place):
        write_synced(place, lambda file: file.write(text.encode()))


def beside(plan: Path) -> Path:
    """Where the profile of the machine lies that was measured for this plan: `my.plan.toml`, `my.hardware.toml`."""
    return plan.with_name(f"{plan.name.removesuffix('.toml').removesuffix('.plan')}.hardware.toml")


def _places(output: Path, names: list[str]) -> dict[str, Path]:
    """Where each machine's plan is written, checked before the work: a file, or of several machines a folder."""
    from tracekit.durable import reporting

    if len(names) > 1:
        with reporting(output):
            output.mkdir(parents=True, exist_ok=True)
    return {name: _free(output if len(names) == 1 else output / f"{name}.plan.toml") for name in names}


def _free(place: Path) -> Path:
    """The place of a file that can be written and is not there yet."""
    from tracekit.durable import check_place
    from tracekit.errors import PlanError

    if place.is_file():
        raise PlanError(f"{place} exists: choose another --output, or remove it")
    check_place(place)
    return place
