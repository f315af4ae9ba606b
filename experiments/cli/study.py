"""`tracekit study`: many plans on many traces and machines, and what follows."""

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    import polars as pl

    from experiments.study.finished_study import FinishedStudy
    from experiments.study.study_file import Study
    from experiments.study.study_json import Round, SettingSummary

MOST_EFFECTS = 60
"""Rows of a table on the terminal."""


def command(
    study: Annotated[Path, typer.Argument(help="a study's file (TOML)")],
    output: Annotated[
        Path | None, typer.Option(help="folder for the results; a study that is already there is gone on with")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="threads; default: one for each core")] = None,
    dask: Annotated[
        str | None, typer.Option(help='compute on a Dask cluster: "tcp://host:8786", or "local" for one of its own')
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="also draw all of it into this file, as tracekit report does (HTML)")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="go ahead where the folder holds another study's results")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count the plans, estimate the time, and stop")] = False,
    json: options.Json = False,
) -> None:
    """Replay a grid of plans on traces and machines, name the best, and say how sure that is.

    Results are Parquet rows, one for each plan on each trace and machine. A study that was interrupted goes on where it
    was: run the same command again. Plans that cannot be replayed are reported, and the others are not held up by them;
    the exit code is 1 only if no plan could be.

    Example: tracekit study study.toml --output study
    """
    from experiments.study.study_file import load_study

    loaded = load_study(study)
    if dry_run:
        _dry_run(loaded, workers, json)
        return
    if output is None:
        from tracekit.errors import StudyError

        raise StudyError("say where the results go: --output DIR (or --dry-run)")
    if report is not None:
        from tracekit.durable import check_place

        check_place(report)
    from experiments.study.cells import cells_of
    from experiments.study.finished_study import FinishedStudy, choose_workers
    from experiments.study.run_study import run_study
    from experiments.study.search import work
    from experiments.study.study_folder import holds_another

    cells, text = cells_of(loaded), study.read_text("utf-8")
    if not replace and sys.stdin.isatty() and holds_another(output, text, {cell.key for cell in cells}):
        replace = typer.confirm(f"{output} holds the results of another study. Replace them?", err=True)
    total = round(work(loaded, len(cells)))
    try:
        with console.progress("replaying", total) as advance:
            summary = run_study(
                loaded,
                output,
                choose_workers(workers, dask),
                source=text,
                progress=advance,
                replace=replace,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is finished is kept; run the same command again to go on") from None
    if report is not None:
        from experiments.report.page import write_report
        from experiments.study.study_content import report_content

        write_report(report, report_content(output))
    if json:
        console.emit_json(summary)
    else:
        _show(FinishedStudy(output), output)
        if report is not None:
            console.tell(f"report: {report}")
    if summary.failed:
        console.say(f"warning: {summary.failed} of {summary.cells} cells could not be replayed")
        for found in summary.errors[:10]:
            console.say(f"  {found.cells} x {found.error} (first: {found.first_plan})")
    if summary.failed == summary.cells:
        raise typer.Exit(1)


def _dry_run(study: "Study", workers: int | None, json: bool) -> None:
    from experiments.study.cells import cells_of
    from experiments.study.estimate import estimate
    from experiments.study.search import shares
    from experiments.study.workers import cores

    threads = workers or cores()
    found_out = estimate(study, cells_of(study), threads)
    lengths, seconds = shares(study.search), found_out.seconds
    found = {
        "traces": len(study.traces),
        "plans": len(study.plans),
        "machines": len([machine for machine in study.machines if machine is not None]),
        "cells": found_out.cells,
        "passes": found_out.passes,
        "search": lengths,
        "seconds": None if seconds is None else round(seconds, 3),
        "compiled_seconds": round(found_out.compiled, 3),
        "workers": threads,
    }
    if json:
        console.emit_json(found)
        return
    names = {
        "traces": "traces",
        "plans": "plans",
        "machines": "machines",
        "cells": "cells: a plan on a trace and a machine",
        "passes": "decision passes, each timed on every machine",
    }
    rows = [(words, str(found[name])) for name, words in names.items()]
    if lengths:
        rows.append(
            ("search: rounds on this share of the traces first", ", ".join(f"{100 * s:.3g} %" for s in lengths))
        )
    rows.append((f"estimated time on {threads} threads", "-" if seconds is None else duration(seconds)))
    if found_out.compiled >= 1:
        rows.append(("compiled just now, kept for the study", duration(found_out.compiled)))
    console.table(study.label, ["what", "value"], rows)


def _show_search(rounds: "list[Round]") -> None:
    """What a search pruned, round by round."""
    if not rounds:
        return
    columns = ["of the decode steps", "plans", "kept", "pruned", "too large", "failed", "last kept", "first pruned"]
    rows = []
    for found in rounds:
        ends = [str(end or "-") for end in (found.last_kept, found.first_pruned)]
        counts = [f"{n:,}" for n in (found.plans, found.kept, found.pruned, found.too_large, found.failed)]
        rows.append([f"first {100 * found.share:.3g} %", *counts, *ends])
    console.table("Search", columns, rows)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _show_effects(effects: "pl.DataFrame", output: Path) -> None:
    """Each policy against the baseline at each cache size."""
    from experiments.study.effects import SAID, effect_text, interval_text

    if not len(effects):
        return
    formats = effects["weights"].n_unique() > 1
    columns = ["cache", *(["weights"] if formats else []), "policy", "effect", "interval", "verdict"]
    rows = [
        [
            row["capacity"],
            *([row["weights"] or "-"] if formats else []),
            row["policy"],
            effect_text(row),
            interval_text(row),
            SAID[row["outcome"]],
        ]
        for row in effects.head(MOST_EFFECTS).iter_rows(named=True)
    ]
    first = effects.row(0, named=True)
    console.table(f"Against {first['baseline']} at the same cache size, {first['quantity']}", columns, rows)
    if len(effects) > MOST_EFFECTS:
        console.tell(f"  ... and {len(effects) - MOST_EFFECTS:,} more: {output}/effects.parquet")


def _show(study: "FinishedStudy", output: Path) -> None:
    """Of each setting the best plans, what to keep in mind, and one verdict; the report has every comparison."""
    from experiments.statistics.speeds import MODELLED

    summary = study.summary
    for found in summary.settings:
        if found.best:
            said = f" ({MODELLED})" if found.modelled else ""
            console.table(f"The best plans: {found.conditions}{said}", *_best(found))
            if found.alike and len(found.best) > 1:
                console.tell(f"all of these: {found.alike}")
        _show_effects(found.conditions.rows_of(study.effects), output)
        for line in found.answers:
            console.tell(f"  {line}")
        for note in found.notes:
            console.tell(f"note: {note}")
        _show_search(found.search)
        verdict = f"; {found.verdict}" if found.verdict else ""
        console.tell(f"{found.conditions}: {found.statement}{verdict}")
    console.warn(summary.warnings)
    if study.winner_files:
        console.tell(f"winner: {output}/winner.plan.toml")
    if len(study.winner_files) > 1:
        console.tell(f"winners: {', '.join(str(place) for place in study.winner_files)}")
    console.tell(
        f"results: {output}/results.parquet ({summary.cells} rows); tracekit report {quote(str(output))} draws them"
    )


def _best(found: "SettingSummary") -> tuple[list[str], list[list[str]]]:
    """The table of the best plans, as the report has it."""
    from experiments.quality.measurement import loss_text
    from experiments.study.leaders import valued

    measured = any(leader.loss is not None for leader in found.best)
    columns = ["plan", found.unit or "", "against the best", "GB on device", "of the bound"]
    columns += ["loss of quality"] if measured else []
    rows = [
        [
            leader.name,
            valued(leader.value, leader.ends),
            "best" if place == 0 else leader.words or "-",
            "-" if leader.device_bytes is None else f"{leader.device_bytes / 1e9:.2f}",
            console.percent(leader.share_of_bound, 1),
            *([loss_text(leader.loss)] if measured else []),
        ]
        for place, leader in enumerate(found.best)
    ]
    return columns, rows
