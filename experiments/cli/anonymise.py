"""`tracekit anonymise`: a trace to give away."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace directory to write, NAME.trace")],
    model: Annotated[str | None, typer.Option("--model", help="a name in place of the model's")] = None,
    relabel: Annotated[
        bool, typer.Option("--relabel", help="number each layer's experts anew, at random and for good")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Leave out what may tell of texts, people and files: token ids, digests of prompts, seeds, names in notes.

    Whoever holds the model may still guess tokens from the experts that they chose: --relabel prevents that, and leaves
    every replay as it was whose policy does not look at an expert's number. Numbers of traces relabelled apart do not
    match: merge them first. Lengths of prompts and answers remain.

    Example: tracekit anonymise my.trace --relabel --output public.trace
    """
    import numpy as np

    from experiments.cli import console
    from experiments.cli import traces as printed
    from tracekit.edit import anonymise
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    generator = np.random.default_rng() if relabel else None  # seeded by the system: nobody can draw it again
    with console.progress("anonymising", opened.tokens) as advance:
        written = anonymise(opened, output, model=model, relabel=generator, progress=advance)
    printed.emit(written, json=json)
