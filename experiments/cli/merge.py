"""`tracekit merge`: several recordings of one model as one trace."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import console, options
from experiments.cli.traces import emit


def command(
    traces: Annotated[list[Path], typer.Argument(help="two trace directories or more, in the order to keep")],
    output: options.NewTrace,
    json: options.Json = False,
) -> None:
    """Join recordings of the same model into one trace, request after request.

    Steps and requests are numbered on; weights, logits and lookahead come along. Recordings of different models, or
    with different recorded arrays, are refused.

    Example: tracekit merge monday.trace tuesday.trace --output week.trace
    """
    from tracekit.edit.merge import merge
    from tracekit.trace import Trace

    opened = [Trace.open(path) for path in traces]
    with console.progress("merging", sum(trace.tokens for trace in opened)) as advance:
        written = merge(opened, output, progress=advance)
    emit(written, json=json)
