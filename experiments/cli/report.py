"""`tracekit report`: a study as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import console, options


def command(
    study: Annotated[Path, typer.Argument(help="the folder of a finished study")],
    output: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    validation: Annotated[
        Path | None, typer.Option(help="what `tracekit validate --json` printed; default: validation.json in the study")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="folder for every figure as a picture, too, for papers")] = None,
    json: options.Json = False,
) -> None:
    """Draw a study: who won and how surely, speed against bounds and memory, prefetches, regret, one token, hit-ratio
    curves, the use of experts; and, where the winner was run in the engine, simulated against measured time.

    The file is complete in itself and opens offline. Needs the extra: pip install 'moe-tracekit[report]'

    Example: tracekit report study --output report.html
    """
    from experiments.report.page import write_figures, write_report
    from experiments.study.study_content import report_content

    content = report_content(study, validation)
    written = write_report(output, content)
    figures = {} if png is None else write_figures(png, content)
    if json:
        found = {"report": str(written), "bytes": written.stat().st_size}
        console.emit_json(found | ({} if png is None else {"figures": {str(png / n): w for n, w in figures.items()}}))
    else:
        console.tell(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB)")
        if png is not None:
            console.tell(f"figures: {png} ({len(figures)} pictures)")
