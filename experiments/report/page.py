"""Writing a report: one file, whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from experiments.report.content import ReportContent
from tracekit.durable import check_place, write_synced
from tracekit.errors import StudyError, TracekitError

if TYPE_CHECKING:
    from experiments.report.figures import Format


def write_figures(
    folder: Path, content: ReportContent, form: "Format" = "pdf", select: Sequence[str] = ()
) -> dict[str, str]:
    """Write the report's charts and tables into `folder` (`experiments.report.figures.figures`); returns what each file
    shows, in a sentence. Raises TracekitError as `write_report` does.
    """
    with _drawing():
        from experiments.report.figures import figures
    drawn = figures(content, form, select)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (data, _) in drawn.items():
            write_synced(folder / name, partial(_write, data))
    except OSError as error:
        raise StudyError(f"cannot write figures to {folder}: {error.strerror}") from None
    return {name: sentence for name, (_, sentence) in drawn.items()}


def write_report(path: Path, content: ReportContent) -> Path:
    """Write `content` as one self-contained HTML file and return its path.

    The file makes no request: Vega is inside it, once, and its content security policy forbids the rest. The
    same content gives the same bytes (with the same Vega). The file appears whole or not at all.

    Raises TracekitError when the optional packages (altair, vl-convert-python) are absent or `path` cannot be
    written.
    """
    path = Path(path)
    text = _page(content)
    try:
        check_place(path)
        write_synced(path, partial(_write, text.encode("utf-8", "replace")))
    except OSError as error:
        raise StudyError(f"cannot write the report {path}: {error.strerror}") from None
    return path


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _page(content: ReportContent) -> str:
    with _drawing():
        import vl_convert

        from experiments.report.render import render
    return render(content, str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")))


@contextmanager
def _drawing() -> Iterator[None]:
    """Drawing is an optional extra: everything else of this package works without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("altair", "vl_convert"):
            raise
        raise TracekitError(
            f"a report needs {error.name}, which is not installed: pip install 'moe-tracekit[report]'"
        ) from None
