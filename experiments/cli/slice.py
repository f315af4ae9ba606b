"""`tracekit slice`: part of a trace as a trace."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace directory to write, NAME.trace")],
    requests: Annotated[
        str | None,
        typer.Option("--requests", metavar="FIRST:END", help="requests by number, the end excluded: 0:10 or 3,6,9:12"),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="FIRST:END", help="forward passes by number: 100:200, 5: or :10,20:"),
    ] = None,
    phase: Annotated[str | None, typer.Option("--phase", help="prefill or decode")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Keep some requests, some steps or one phase of a trace; all that is given must hold.

    Requests, steps and positions keep their numbers; weights, logits and lookahead come along.

    Example: tracekit slice long.trace --requests 0:10 --phase decode --output short.trace
    """
    from experiments.cli import console
    from experiments.cli import traces as printed
    from tracekit.edit import Selection, slice_trace
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    with console.progress("slicing", opened.tokens) as advance:
        written = slice_trace(opened, Selection(requests, steps, phase), output, progress=advance)
    printed.emit(written, json=json)
