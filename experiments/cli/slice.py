"""`tracekit slice`: part of a trace as a trace."""

from typing import Annotated

import typer

from experiments.cli import console, options
from experiments.cli.traces import emit


def command(
    trace: options.TraceDirectory,
    output: options.NewTrace,
    requests: Annotated[
        str | None,
        typer.Option(metavar="FIRST:END", help="requests by number, the end excluded: 0:10 or 3,6,9:12"),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:END", help="forward passes by number: 100:200, 5: or :10,20:")
    ] = None,
    phase: Annotated[str | None, typer.Option(help="prefill or decode")] = None,
    json: options.Json = False,
) -> None:
    """Keep some requests, some steps or one phase of a trace; all that is given must hold.

    Requests, steps and positions keep their numbers; weights, logits and lookahead come along.

    Example: tracekit slice long.trace --requests 0:10 --phase decode --output short.trace
    """
    from tracekit.edit.slice import Selection, slice_trace
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    with console.progress("slicing", opened.tokens) as advance:
        written = slice_trace(opened, Selection(requests, steps, phase), output, progress=advance)
    emit(written, json=json)
