"""`tracekit import`: a foreign routing trace becomes a trace."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    format: Annotated[str, typer.Argument(help="bigmoe-csv or npz")],
    source: Annotated[Path, typer.Argument(help="the file to import")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace directory to write, NAME.trace")],
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Import routing recorded by another engine, as a new trace.

    bigmoe-csv is the route trace of BigMoeOnEdge. npz is a NumPy file: `experts`, integers of shape (tokens,
    layers, k), and if you have them `weights` of the same shape, `request`, `step`, `position`, `phase` and
    `token_id` of shape (tokens), `expert_bytes` and `experts_per_layer` as one number or one for each layer.
    A file that is not what its format says is refused, and nothing is written.

    Example: tracekit import npz routing.npz --output mine.trace
    """
    from experiments.cli import console
    from tracekit.importers import import_trace

    trace = import_trace(format, source, output)
    manifest = trace.manifest
    if json:
        console.emit_json(
            {
                "trace": str(output),
                "digest": trace.digest,
                "model": manifest.model.id,
                "tokens": trace.tokens,
                "requests": manifest.requests,
                "steps": manifest.steps,
                "layers": trace.layers,
                "top_k": trace.top_k,
                "notes": manifest.notes,
            }
        )
        return
    typer.echo(
        f"{output}: {trace.tokens} tokens in {manifest.steps} steps, {trace.layers} MoE layers, "
        f"top-{trace.top_k} of {trace.num_experts} experts"
    )
    for note in manifest.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"next: tracekit info {output}")
