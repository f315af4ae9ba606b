"""`tracekit report`: a study as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    study: Annotated[Path, typer.Argument(help="the folder of a finished study")],
    output: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Draw a study: who won and how surely, speed against bounds and memory, prefetches, regret, hit-ratio curves.

    The file is complete in itself and opens offline. Needs the extra: pip install 'moe-tracekit[report]'

    Example: tracekit report study --output report.html
    """
    from experiments.cli import console
    from experiments.report import write_report
    from experiments.study.drawing import report_content

    written = write_report(output, report_content(study))
    if json:
        console.emit_json({"report": str(written), "bytes": written.stat().st_size})
    else:
        typer.echo(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB)")
