"""`python -m experiments.research.league [--data FOLDER] [--json] [--write docs/league.md]`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="python -m experiments.research.league", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def league(
    data: Annotated[
        Path | None, typer.Option(help="the folder of reference data; default: what TRACEKIT_SHARED names")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
    write: Annotated[Path | None, typer.Option("--write", help="also write the page to this file")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="also draw the errors, to this PNG file")] = None,
) -> None:
    """Published measurements of expert offloading, fitted on a few rows and predicted on all others.

    Example: python -m experiments.research.league --data shared/data
    """

    from experiments.cli import console
    from experiments.research.league.all_sources import all_sources
    from experiments.research.league.page import COLUMNS, SUMMARY_COLUMNS, missing, page, rows, summary
    from tracekit.durable import write_synced
    from tracekit.errors import StudyError

    named = os.environ.get("TRACEKIT_SHARED") if data is None else str(data)
    if not named:
        raise StudyError("the league's figures lie in the folder of reference data: name it with --data")
    sources = all_sources(Path(named))
    if write is not None:
        write_synced(write, lambda file: file.write(page(sources).encode()))
    if picture is not None:
        from experiments.research.league.chart import errors
        from experiments.research.paper.charts import png

        image = png(errors(sources))
        write_synced(picture, lambda file: file.write(image))
    if json:
        console.emit_json({"sources": sources})
        return
    for source in sources:
        console.table(f"{source.title} ({source.unit})", COLUMNS, rows(source))
        for line in [*(f"fitted: {fit}" for fit in source.fits), *(f"missing: {lack}" for lack in missing(source))]:
            print(line)
        print()
    console.table("Errors of what was predicted", SUMMARY_COLUMNS, summary(sources))


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr and exit code 2."""
    from experiments.cli.main import guarded

    return guarded(lambda: app(arguments, standalone_mode=False))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
