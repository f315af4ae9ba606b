"""`tracekit size`: which machine is fast enough for a model, and what each costs."""

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from experiments.cli.sized import plain, show
from tracekit.errors import PlanError

if TYPE_CHECKING:
    from engine.hardware.prices import PriceList
    from experiments.prior import About
    from experiments.size.priced import Priced

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|)")


def command(
    model: Annotated[
        str, typer.Argument(help="a model: its directory, config.json or GGUF, or a shipped shape's name; or trace")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="recorded routing of the model, or of one with as many experts; else drawn, as of prior:MODEL"
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option(min=0, help="tokens per second that are wanted, of all sequences together")
    ] = None,
    ttft: Annotated[str | None, typer.Option(help="the longest time to the first token: 2s, 500ms")] = None,
    context: options.Context = None,
    concurrency: options.Sequences = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="a machine, name or file, repeatable; all shipped ones if not given")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(help="each machine of --hardware also with link=2x,vram=24GiB,ram=8ch-ddr5: one by one, and all"),
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="prices and powers (TOML) in place of the shipped ones")] = None,
    life_hours: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="hours over which a purchase is written off; the list's")
    ] = None,
    engine: options.Engine = None,
    reshape: options.Reshape = None,
    host_memory: options.HostMemory = None,
    disk_speed: options.DiskSpeed = None,
    tokens: options.PriorTokens = None,
    prompt_tokens: options.PriorPrompt = None,
    requests: options.PriorRequests = None,
    weights: Annotated[
        str | None, typer.Option(help="formats to choose from, as q4_k or bf16,hqq-2bit; hqq-4bit if not given")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="threads")] = 2,
    json: options.Json = False,
) -> None:
    """Find the fastest plan for a model on each machine; say which are fast enough, what they cost, and what binds.

    Of those that reach the target the table marks the ones that no other betters in purchase, energy and cost of a
    million tokens together. No better machine is slower in it. Speeds are modelled, not measured.

    Without --trace, routing is drawn from what is published of models like it: a prior, not your model, whose interval
    is between the least and the most local of these.

    Example: tracekit size mixtral-8x7b --trace my.trace --target 20 --context 8192 --ttft 2s
    """
    from engine.hardware.prices import load_prices
    from engine.plan.capacity import parse_memory
    from engine.shapes import load_shape
    from experiments.prior import about, asked_for, drawn, model_of
    from experiments.size.size import FORMATS, Goal, size
    from tracekit.trace import Trace

    like = model if trace is None else model_of(trace)
    options.refuse_without_prior(like, tokens, prompt_tokens, requests)
    if like == "trace":
        raise PlanError("which routing? Give --trace, or a model in place of `trace`: routing like its is then drawn")
    if target is not None and not math.isfinite(target):
        raise PlanError(f"--target {target} is no speed: give tokens per second")
    room = parse_memory(host_memory, "--host-memory")
    goal, listed = Goal(target, _seconds(ttft)), load_prices(prices)
    machines = _machines(hardware or [], what_if or [], engine, listed, life_hours, given=prices is not None)
    shape = None if model == "trace" else load_shape(model)
    formats = FORMATS if weights is None else tuple(word.strip() for word in weights.split(","))
    said: About | None = None
    with console.progress("trying plans", None) as advance, ExitStack() as stack:
        if like is None:
            assert trace is not None
            routing: Mapping[str, Trace] = {"likely": Trace.open(trace)}
        else:
            wanted = asked_for(like, tokens=tokens, prompt_tokens=prompt_tokens, requests=requests, batch=concurrency)
            routed = load_shape(like)
            levels = stack.enter_context(drawn(wanted, routed))
            said, routing = about(wanted, routed), {str(level): one for level, one in levels.items()}
        found = size(
            routing,
            machines,
            shape,
            goal=goal,
            context=context,
            batch=concurrency,
            formats=formats,
            reshape=reshape,
            host_memory=room,
            disk_speed=options.rate(disk_speed),
            workers=workers,
            progress=advance,
        )
    if json:
        basis = {"model": model, "trace": None if said else str(trace), "prior": said, "goal": goal._asdict()}
        console.emit_json(basis | plain(found, listed, life_hours))
        return
    show(model, None if said else trace.name if trace else None, found, listed, life_hours, said)


def _seconds(text: str | None) -> float | None:
    """`2s`, `500ms` or plain seconds. PlanError for anything else."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise PlanError(f"--ttft {text!r} is no time: write 2s, 500ms, ...")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _machines(
    hardware: list[str],
    what_if: list[str],
    engine: str | None,
    prices: "PriceList",
    life_hours: int | None,
    *,
    given: bool,
) -> "list[Priced]":
    """The machines that are named, or all shipped ones, each with its variations, and what they cost.

    The shipped list is of shipped machines; one that is `given` may also name a user's.
    """
    from msgspec.structs import replace

    from engine.hardware import hardware_names, load_hardware
    from experiments.size.priced import priced
    from experiments.size.variations import variations

    if what_if and not hardware:
        raise PlanError("--what-if changes machines that are named: give --hardware, too")
    found = []
    for name in hardware or hardware_names():
        machine = load_hardware(name, engine)
        own = name not in hardware_names()
        listed = prices if given or not own else replace(prices, machines={})
        found.append(priced(machine, listed, own=own, life_hours=life_hours))
        for text in what_if:
            # Another machine: what it would cost and draw only the list can say.
            found += [priced(other, prices, own=False, life_hours=life_hours) for other in variations(machine, text)]
    return found
