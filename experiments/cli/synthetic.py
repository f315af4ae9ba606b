"""`tracekit synthetic`: a trace of stated statistics, or like those of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from experiments.cli import console, options
from experiments.cli.traces import emit

if TYPE_CHECKING:
    from tracekit.priors.family import Level
    from tracekit.trace import Trace


def command(
    output: options.NewTrace,
    tokens: Annotated[int, typer.Option(help="decode tokens, a step each")] = 10_000,
    layers: Annotated[int | None, typer.Option(help="MoE layers; 8")] = None,
    experts: Annotated[int | None, typer.Option(help="experts per layer; 64")] = None,
    top_k: Annotated[int | None, typer.Option(help="distinct experts per token and layer; 2")] = None,
    zipf: Annotated[float | None, typer.Option(help="exponent of the experts' popularity, 0 is even; 0.8")] = None,
    persistence: Annotated[
        float | None, typer.Option(help="how likely a token repeats the choice before it, at each layer; 0.3")
    ] = None,
    shift_every: Annotated[int | None, typer.Option(help="tokens after which other experts become popular")] = None,
    domains: Annotated[int | None, typer.Option(help="how many popularities take turns; 2")] = None,
    request_tokens: Annotated[int | None, typer.Option(help="tokens per request; without it, one request")] = None,
    expert_bytes: Annotated[int | None, typer.Option(help="bytes of one expert")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="a model, as --model-shape takes it: routing drawn from the prior of its granularity"),
    ] = None,
    locality: Annotated[
        Literal["low", "likely", "high"] | None,
        typer.Option(help="with --like: of the least local to the most; likely"),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=0, help="with --like: tokens of each request's prompt, one step; 0")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="with --like: requests that share the tokens; 1")] = None,
    seed: Annotated[int, typer.Option(help="another seed, another trace")] = 0,
    json: options.Json = False,
) -> None:
    """Write a trace whose popularity, locality and domain shifts are as told, for tests and examples.

    --like MODEL takes them from what is published of models of its granularity (docs/sizing.md).

    It is marked synthetic, and so are replays of it: no model chose its experts.

    Example: tracekit synthetic --tokens 20000 --zipf 1.0 --persistence 0.4 --output made.trace
    """
    from tracekit.errors import TraceError
    from tracekit.synthetic import Recipe, synthesize

    told = {"layers": layers, "experts": experts, "top_k": top_k, "zipf": zipf, "persistence": persistence}
    told |= {"shift_every": shift_every, "domains": domains, "request_tokens": request_tokens}
    given = {name: value for name, value in {**told, "expert_bytes": expert_bytes}.items() if value is not None}
    drawn = {"--locality": locality, "--prompt-tokens": prompt_tokens, "--requests": requests}
    if like is not None:
        options.refuse_decided("--like", {f"--{name.replace('_', '-')}": value for name, value in given.items()})
        written = _like(like, output, tokens, prompt_tokens or 0, requests or 1, locality or "likely", seed)
    elif asked := [name for name, value in drawn.items() if value is not None]:
        raise TraceError(f"{', '.join(asked)}: of what model? give --like too")
    else:
        recipe = msgspec.convert({**DEFAULTS, **given, "tokens": tokens, "seed": seed}, Recipe)
        with console.progress("drawing", tokens) as advance:
            written = synthesize(output, recipe, progress=advance)
    emit(written, json=json)


DEFAULTS = {"layers": 8, "experts": 64, "top_k": 2, "zipf": 0.8, "persistence": 0.3, "domains": 2}


def _like(model: str, output: Path, tokens: int, prompt: int, requests: int, level: "Level", seed: int) -> "Trace":
    """A trace drawn from the prior of a model's granularity."""
    from engine.shapes import load_shape
    from tracekit.priors import prior_trace

    shape = load_shape(model)
    with console.progress("drawing", tokens + requests * prompt) as advance:
        return prior_trace(
            output,
            [shape.experts] * len(shape.moe_layers),
            shape.top_k,
            level=level,
            tokens=tokens,
            prompt_tokens=prompt,
            requests=requests,
            seed=seed,
            name=shape.name,
            progress=advance,
        )
