"""`tracekit recommend`: which plan to run on which machine."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.recommend import Choice, Recommendation

GIB = 1 << 30


def command(
    model: Annotated[
        str, typer.Argument(help="a model: its directory, config.json or GGUF, or a shipped shape's name; or trace")
    ],
    trace: Annotated[
        Path, typer.Option(help="recorded routing of the model, or of one with as many experts; else prior:MODEL")
    ],
    hardware: Annotated[list[str], typer.Option(help="the machine, repeatable; `calibrate` measures this one")],
    context: Annotated[
        int | None, typer.Option(min=1, max=1 << 24, help="tokens of each sequence; the trace's if not given")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=1 << 16, help="sequences at once; the trace's if not given")
    ] = None,
    engine: options.Engine = None,
    reshape: options.Reshape = None,
    memory: options.Memory = None,
    tokens: options.PriorTokens = None,
    prompt_tokens: options.PriorPrompt = None,
    requests: options.PriorRequests = None,
    weights: Annotated[
        str | None, typer.Option(help="formats to choose from: bf16,hqq-4bit,... or q4_k,mxfp4,...; the engine's own")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write the fastest plan here; with several machines a folder")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="threads")] = 2,
    json: options.Json = False,
) -> None:
    """Try formats, capacities, policies, prefetchers and the CPU lane in the machine's memory; say which is fastest.

    The best plan of each format, with an interval over requests, memory and what limits it. Modelled, not measured: run
    the plan with `tracekit validate` where the model is. How much a format loses in quality is not weighed here.

    Without a recording, --trace prior:MODEL draws routing from what is published of models like it (docs/sizing.md):
    the interval is then between the least and the most local of those models.

    Example: tracekit recommend mixtral-8x7b --trace my.trace --hardware rtx3060 --context 8192 --output best.plan.toml
    """
    import msgspec

    from engine.hardware import load_hardware
    from engine.plan.capacity import parse_memory
    from engine.shapes import load_shape
    from experiments.cli import prior
    from experiments.prior import model_of, recommend_prior
    from experiments.recommend import FORMATS, recommend
    from tracekit.caution import MARK
    from tracekit.durable import reporting, write_synced
    from tracekit.trace import Trace

    limit, like = parse_memory(memory), model_of(trace)
    options.refuse_without_prior(like, tokens, prompt_tokens, requests)
    race: Callable[..., Recommendation]
    if like is None:
        race = partial(recommend, Trace.open(trace))
    else:
        wanted = prior.asked(like, tokens=tokens, prompt_tokens=prompt_tokens, requests=requests or batch)
        race = partial(recommend_prior, wanted)
    shape = None if model == "trace" else load_shape(model)
    formats = FORMATS if weights is None else tuple(word.strip() for word in weights.split(","))
    machines = {machine.name: machine for machine in (load_hardware(name, engine) for name in hardware)}
    places = {} if output is None else _places(output, list(machines))
    found: dict[str, Recommendation] = {}
    for name, machine in machines.items():
        if limit is not None:
            device = msgspec.structs.replace(machine.device, memory_bytes=limit)
            machine = msgspec.structs.replace(machine, device=device)
        with console.progress(f"trying plans on {name}", None) as advance:
            found[name] = race(
                machine,
                shape,
                context=context,
                batch=batch,
                formats=formats,
                reshape=reshape,
                workers=workers,
                progress=advance,
            )
        if name in places:  # at once: another machine may fail
            best = found[name].choices[0].plan.to_toml().encode()
            with reporting(places[name]):
                write_synced(places[name], partial(_write, best))
    if json:
        console.emit_json({name: _plain(one) for name, one in found.items()})
        return
    for name, one in found.items():
        routing = trace.name if like is None else f"{trace} ({MARK})"
        columns = [PRIOR_INTERVAL if column == INTERVAL and like is not None else column for column in COLUMNS]
        title = f"{model} on {name}, routing of {routing}: {one.tried} replays"
        console.table(title, columns, [_row(choice) for choice in one.choices])
        for word, why in one.refused.items():
            console.tell(f"{word} is left out: {why}")
    console.tell("Modelled, not measured: `tracekit validate` holds a plan against the engine.")


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _places(output: Path, names: list[str]) -> dict[str, Path]:
    """Where each machine's plan is written, checked before the work: a file, or of several machines a folder."""
    from tracekit.durable import check_place, reporting
    from tracekit.errors import PlanError

    if len(names) > 1:
        with reporting(output):
            output.mkdir(parents=True, exist_ok=True)
    places = {name: output if len(names) == 1 else output / f"{name}.plan.toml" for name in names}
    for place in places.values():
        if place.is_file():
            raise PlanError(f"{place} exists: choose another --output, or remove it")
        check_place(place)
    return places


INTERVAL, PRIOR_INTERVAL = "95 % interval", "least to most local"
COLUMNS = ("weights", "plan", "tokens/s", INTERVAL, "TTFT ms", "GiB", "most time goes to", "J/token")


def _row(choice: "Choice") -> list[str]:
    from experiments.study.grid import plan_name

    time, estimates = choice.result.time, choice.result.estimates
    assert time is not None and estimates is not None
    between = "too few requests" if choice.low is None else f"{choice.low:.2f} to {console.number(choice.high, 2)}"
    return [
        str(choice.plan.weights.experts),
        plan_name(choice.plan, stored=False),
        f"{choice.tokens_per_second:.2f}",
        between,
        console.number(time.ttft_ms, 0),
        f"{estimates.device_bytes / GIB:.1f}",
        choice.limit,
        console.number(estimates.joules_per_token, 1),
    ]


def _plain(found: "Recommendation") -> dict[str, object]:
    return {
        "tried": found.tried,
        "refused": found.refused,
        "prior": next((choice.result.provenance.get("prior") for choice in found.choices), None),
        "plans": [
            {
                "plan": choice.plan.to_dict(),
                "tokens_per_second": choice.tokens_per_second,
                "low": choice.low,
                "high": choice.high,
                "limit": choice.limit,
                "time": choice.result.time,
                "estimates": choice.result.estimates,
                "warnings": choice.result.warnings,
            }
            for choice in found.choices
        ],
    }
