"""`tracekit anonymise`: a trace to give away."""

from typing import Annotated

import typer

from experiments.cli import console, options
from experiments.cli.traces import emit


def command(
    trace: options.TraceDirectory,
    output: options.NewTrace,
    model: Annotated[str | None, typer.Option(help="what the model is called then; else nothing names it")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="of the experts' new numbers; else nobody can draw them again")
    ] = None,
    json: options.Json = False,
) -> None:
    """Drop what tells of texts, people, models and files, and number each layer's experts anew.

    Token ids, digests of prompts, seeds, the model's name and notes that may hold names go. Who holds the model could
    still guess tokens from the experts they chose: so experts get new numbers, drawn by --seed, which is then a secret.
    One seed numbers all traces of a model alike. Replays stay as they were, whatever the policy, unless it decides
    ties by an expert's number. Lengths of prompts and answers remain.

    Example: tracekit anonymise my.trace --output public.trace
    """
    import numpy as np

    from tracekit.edit import anonymise
    from tracekit.edit.anonymise import NAMELESS
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    rng = np.random.default_rng(seed)
    with console.progress("anonymising", opened.tokens) as advance:
        written = anonymise(opened, output, rng, model=model or NAMELESS, progress=advance)
    emit(written, json=json)
