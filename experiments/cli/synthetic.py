"""`tracekit synthetic`: a trace of stated statistics."""

from typing import Annotated

import typer

from experiments.cli import console, options
from experiments.cli.traces import emit


def command(
    output: options.NewTrace,
    tokens: Annotated[int, typer.Option(help="decode tokens, a step each")] = 10_000,
    layers: Annotated[int, typer.Option(help="MoE layers")] = 8,
    experts: Annotated[int, typer.Option(help="experts per layer")] = 64,
    top_k: Annotated[int, typer.Option(help="distinct experts per token and layer")] = 2,
    zipf: Annotated[float, typer.Option(help="exponent of the experts' popularity; 0 is even")] = 0.8,
    persistence: Annotated[
        float, typer.Option(help="how likely a token repeats the choice before it, at each layer")
    ] = 0.3,
    shift_every: Annotated[int | None, typer.Option(help="tokens after which other experts become popular")] = None,
    domains: Annotated[int, typer.Option(help="how many popularities take turns")] = 2,
    request_tokens: Annotated[int | None, typer.Option(help="tokens per request; without it, one request")] = None,
    expert_bytes: Annotated[int | None, typer.Option(help="bytes of one expert")] = None,
    seed: Annotated[int, typer.Option(help="another seed, another trace")] = 0,
    json: options.Json = False,
) -> None:
    """Write a trace whose popularity, locality and domain shifts are as told, for tests and examples.

    It is marked synthetic, and so are replays of it: no model chose its experts.

    Example: tracekit synthetic --tokens 20000 --zipf 1.0 --persistence 0.4 --output made.trace
    """
    from tracekit.synthetic import Recipe, synthesize

    recipe = Recipe(
        tokens=tokens,
        layers=layers,
        experts=experts,
        top_k=top_k,
        zipf=zipf,
        persistence=persistence,
        shift_every=shift_every,
        domains=domains,
        request_tokens=request_tokens,
        expert_bytes=expert_bytes,
        seed=seed,
    )
    with console.progress("drawing", tokens) as advance:
        written = synthesize(output, recipe, progress=advance)
    emit(written, json=json)
