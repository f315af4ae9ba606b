"""`python -m experiments.research.paper table2 [--trace T] [--json] [--write PAGE]` and `... figures TRACE`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="python -m experiments.research.paper",
    help="Eliseev & Mazur 2023 (arXiv 2312.17238), reproduced.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def table2(
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="also draw the table, to this PNG file")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Mixtral's own routing, recorded with --lookahead 1; else synthetic")
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", help="also fill in the numbers of this page")] = None,
) -> None:
    """Fit two terms per GPU to two rows of Table 2, predict the others, and compare with what was published.

    With --trace hit ratios and recall are those of the trace, and so is what the simulator routes.

    Example: python -m experiments.research.paper table2
    """
    import msgspec

    from experiments.cli import console
    from experiments.research.paper.page import filled
    from experiments.research.paper.page_numbers import numbers
    from experiments.research.paper.table2 import reproduce
    from experiments.research.paper.text_tables import TABLES
    from tracekit.errors import StudyError
    from tracekit.trace import Trace

    if trace is not None and write is not None:
        raise StudyError("--write fills in the page of the synthetic routing: leave out --trace")
    result = reproduce(None if trace is None else Trace.open(trace))
    if picture is not None:
        from experiments.research.paper import charts

        picture.write_bytes(charts.png(charts.table2(result)))
    if write is not None:
        write.write_text(filled(write, result), encoding="utf-8")
    if json:
        said = {"numbers": numbers(result)} if trace is None else {}
        console.emit_json(msgspec.to_builtins(result, str_keys=True) | said)
        return
    for build in TABLES.values():
        table = build(result)
        console.table(table.title, table.columns, table.rows)
        print()


@app.command()
def figures(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    output: Annotated[Path, typer.Option("--output", help="directory for PNG, CSV and figures.json")],
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """The quantities of Figures 1 and 2 on a trace: which experts are active, LRU hit ratio, speculative recall.

    Example: python -m experiments.research.paper figures my.trace --output figures
    """
    from experiments.cli import console
    from experiments.research.paper.figures import write_figures
    from tracekit.trace import Trace

    written = write_figures(Trace.open(trace), output)
    if json:
        console.emit_json(written)
        return
    for note in written["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for name in written["files"]:
        print(output / name)


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr and exit code 2."""
    from experiments.cli.main import guarded

    return guarded(lambda: app(arguments, standalone_mode=False))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
