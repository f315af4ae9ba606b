"""`tracekit report`: a study as one HTML file, and as figures for papers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.cli import console, options
from tracekit.errors import StudyError


def command(
    study: Annotated[Path, typer.Argument(help="the folder of a finished study")],
    output: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    validation: Annotated[
        Path | None, typer.Option(help="what `tracekit validate --json` printed; default: validation.json in the study")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="folder for figures of a column's width, one for each question and machine, and for tables"),
    ] = None,
    format: Annotated[
        Literal["svg", "pdf", "png"] | None, typer.Option(help="of --figures; default: pdf. Tables are CSV and LaTeX")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="only these of --figures, as speed-* or best-rtx3060; repeat"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Draw a study: who won and how surely, the best plans of each machine, speed against bounds and memory, regret,
    prefetches, one token, hit-ratio curves, the use of experts; and, where the winner was run in the engine, simulated
    against measured time.

    The file is complete in itself and opens offline. Needs the extra: pip install 'moe-tracekit[report]'

    Example: tracekit report study --output report.html --figures figures --format svg
    """
    if figures is None and (format is not None or select):
        raise StudyError("--format and --select are of figures: say where they go, --figures DIR")
    if study.suffix == ".toml" and study.is_file():
        raise StudyError(
            f"{study} is a study's question: run it first, tracekit study {study} --output DIR, then report DIR"
        )
    from experiments.report.page import write_figures, write_report
    from experiments.study.study_content import report_content

    content = report_content(study, validation)
    written = write_report(output, content)
    drawn = {} if figures is None else write_figures(figures, content, format or "pdf", select or ())
    if json:
        found: dict[str, object] = {"report": str(written), "bytes": written.stat().st_size}
        if figures is not None:
            found["figures"] = {str(figures / name): sentence for name, sentence in drawn.items()}
        console.emit_json(found)
    else:
        console.tell(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB)")
        if figures is not None:
            console.tell(f"figures: {figures} ({len(drawn)} files)")
