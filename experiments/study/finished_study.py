"""Studies from Python: run one, and look at what it found as data frames, plans and words."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import polars as pl
import tomli_w

from engine.plan.plan import Plan
from experiments.study import study_folder as files
from experiments.study.conditions import Conditions
from experiments.study.contestants import plan_of
from experiments.study.run_study import run_study
from experiments.study.study_file import Study, load_study, study_from_dict
from experiments.study.study_folder import read_study
from experiments.study.winner_plans import winner_names
from experiments.study.workers import Say, Threads, Workers
from tracekit.html_table import html_table


class FinishedStudy:
    """What a study left in `folder`; `summary` is its study.json. Raises StudyError where there is no finished one.

    A `temporary` folder lives as long as the object.
    """

    def __init__(self, folder: str | os.PathLike[str], temporary: TemporaryDirectory[str] | None = None) -> None:
        self.folder = Path(folder)
        self._tables, self.summary = read_study(self.folder)
        self._temporary = temporary

    @property
    def results(self) -> pl.DataFrame:
        """A row for each plan on each trace and machine (`experiments.study.schema.COLUMNS`)."""
        return self._tables[files.RESULTS]

    @property
    def effects(self) -> pl.DataFrame:
        """Each plan against the baseline at its capacity (`experiments.study.schema.EFFECT_COLUMNS`)."""
        return self._tables[files.EFFECTS]

    @cached_property
    def comparisons(self) -> pl.DataFrame:
        """The winners against other plans: a row for each, its setting and an `experiments.statistics` comparison."""
        return pl.DataFrame(
            [
                found.conditions._asdict() | msgspec.to_builtins(compared)
                for found in self.summary.settings
                for compared in found.comparisons
            ],
            infer_schema_length=None,
        )

    @cached_property
    def winners(self) -> dict[Conditions, Plan]:
        """The best plan of each setting that has one."""
        return {found.conditions: plan_of(found.plan_toml) for found in self.summary.settings if found.plan_toml}

    @property
    def winner_files(self) -> list[Path]:
        """The plans of all winners, in the order of settings."""
        return [self.folder / files.WINNERS / name for name in winner_names(self.summary.settings)]

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Draw the study as one HTML file; returns its path. Raises TracekitError, too where it lacks altair."""
        from experiments.report import write_report
        from experiments.study.study_content import report_content

        return write_report(Path(path), report_content(self.folder))

    def _repr_html_(self) -> str:
        """Who won, against whom, and what to keep in mind."""
        parts = []
        for found in self.summary.settings:
            verdicts = [("compared", compared.verdict) for compared in found.comparisons]
            told = [("against the baseline", answer) for answer in found.answers]
            notes = [("note", note) for note in found.notes]
            parts.append(html_table(str(found.conditions), [("winner", found.statement), *told, *verdicts, *notes]))
        limits = [html_table("Limits", [("warning", text) for text in self.summary.warnings])]
        return "".join(parts + (limits if self.summary.warnings else []))


def study(
    source: str | os.PathLike[str] | Mapping[str, object] | Study,
    output: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    dask: str | None = None,
    progress: Say | None = None,
    replace: bool = False,
) -> FinishedStudy:
    """Replay a grid of plans on traces and machines, name the best, and say how sure that is: `tracekit study`.

    Args:
        source: a study's file, or its tables (paths in them are relative to where Python runs), or a loaded study.
        output: the folder for results; a study that is already there is gone on with. None: one that is gone with the
            returned object.
        workers: threads, or processes of a Dask cluster of our own; None: one for each core.
        dask: compute on a Dask cluster: "tcp://host:8786", or "local" for one of its own.
        progress: called with the number of cells just finished.
        replace: go ahead where `output` holds another study's results.

    Raises TracekitError when the study as a whole is impossible; a plan that is has an `error` in its row.
    """
    if isinstance(source, Study):
        loaded, text = source, ""
    elif isinstance(source, Mapping):
        loaded, text = study_from_dict(source), _as_toml(source)
    else:
        loaded, text = load_study(source), Path(source).read_text("utf-8")
    computing, temporary = choose_workers(workers, dask), None
    if output is None:
        temporary = TemporaryDirectory(prefix="tracekit-study-")
        output = temporary.name
    run_study(loaded, Path(output), computing, source=text, progress=progress, replace=replace)
    return FinishedStudy(output, temporary)


def _as_toml(tables: Mapping[str, object]) -> str:
    """The tables as a study's file; nothing where they hold what TOML cannot: None."""
    try:
        return tomli_w.dumps(tables)
    except TypeError:
        return ""


def choose_workers(count: int | None, dask: str | None) -> Workers:
    """Threads of this process, or the Dask cluster at the address `dask`."""
    if dask is None:
        return Threads(count)
    from experiments.study.cluster import Cluster

    return Cluster(dask, count)
