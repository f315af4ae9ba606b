"""Running a study: what is missing is computed, what is there is read, and all of it is concluded from."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import polars as pl

from engine.replay.passes import run
from engine.replay.regret import find_regret
from engine.replay.sensitivities import find_sensitivities
from experiments.quality.measurement import Measurement
from experiments.study import study_folder as files
from experiments.study.cell_results import Row, described, measure, setting_of
from experiments.study.cells import RESULTS, Cell, cells_of, group_key, groups
from experiments.study.conclude import conclude
from experiments.study.contestants import fitting_rows
from experiments.study.curve_tables import curve_table
from experiments.study.once import repeated_requests, said_of_traces
from experiments.study.schema import BETTER, REGRET, SCHEMA
from experiments.study.search import search
from experiments.study.shared import SharedRoutings
from experiments.study.study_file import Study
from experiments.study.study_folder import StudyFolder
from experiments.study.study_json import Failure, Provenance, QualitySource, SettingSummary, Summary
from experiments.study.winner_plans import write_winners
from experiments.study.winner_timelines import expert_rows, timeline_rows
from experiments.study.workers import OnPiece, Say, Workers
from tracekit.errors import StudyError, TracekitError
from tracekit.version import own_version


def run_study(
    study: Study,
    folder: Path,
    workers: Workers,
    *,
    source: str = "",
    progress: Say | None = None,
    replace: bool = False,
) -> Summary:
    """Run `study` into `folder`, or go on with what is there; returns what study.json says.

    Whatever was interrupted and resumed, and whoever computed it, the same study leaves the same bytes in
    study.json, the winners' plans and every .parquet file (experiments.study.schema).

    Args:
        source: the study's file as text, kept in the folder.
        progress: called with the number of cells just finished, those found finished included; a cell on a beginning of
            the traces counts as that share of one.
        replace: go ahead where the folder holds another study's results.

    Raises TracekitError when the study as a whole is impossible; a plan that is becomes a row with an `error`.
    """
    cells = cells_of(study)
    if not replace and files.holds_another(folder, source, {cell.key for cell in cells}):
        raise StudyError(f"{folder} holds the results of another study: choose another --output, or give --replace")
    with StudyFolder(folder) as place:
        place.write(files.COPY, source.encode())

        def replay(some: Sequence[Cell], share: float) -> pl.DataFrame:
            return _rows(place, some, workers, None if progress is None else lambda done: progress(done * share))

        cells, searched = search(study, cells, replay)
        rows = replay(cells, 1.0)
        traces = list(dict.fromkeys(cell.routing.path for cell in cells))
        once = repeated_requests(traces)
        settings, effects = conclude(study, rows, searched, once)
        tables = {
            files.RESULTS: rows,
            files.EFFECTS: effects,
            files.SEARCH: searched,
            files.CURVES: curve_table(cells, study.statistics.level, workers),
            files.REGRET: _regrets(study, place, cells, rows, workers),
            files.EXPERTS: expert_rows(traces),
            files.TIMELINE: timeline_rows(cells, settings),
        }
        digests = {name: place.write(name, files.parquet(table)) for name, table in tables.items()}
        summary = summarise(study, cells, rows, settings, once, digests)
        place.write(files.SUMMARY, summary.to_json().encode())
        write_winners(place, settings)
    return summary


def _rows(place: StudyFolder, cells: Sequence[Cell], workers: Workers, progress: Say | None) -> pl.DataFrame:
    """The results of all cells, in their order."""
    done = place.pieces(files.PIECES, SCHEMA)
    finished = set(done["cell"])
    missing = {cell.key: cell for cell in cells if cell.key not in finished}
    if progress is not None:
        progress(len(cells) - sum(cell.key in missing for cell in cells))
    failed = []
    for group, rows in workers.run(measure, groups(missing.values())):
        # What failed is tried again next time: a missing file may have come by then.
        failed += [row for row in rows if row.get("error") is not None]
        sound = [row for row in rows if row.get("error") is None]
        if sound:
            place.add(files.PIECES, group_key(group), pl.DataFrame(sound, schema=SCHEMA))
        if progress is not None:
            progress(len(group))
    done = pl.concat([place.pieces(files.PIECES, SCHEMA), pl.DataFrame(failed, schema=SCHEMA)])
    # Where traces, policies and profiles lie is no part of the key: results name them as this study does.
    named = [described(cell) for cell in cells]
    order = pl.DataFrame(named, schema={name: SCHEMA[name] for name in named[0]})
    found = order.join(done.drop(set(named[0]) - {"cell"}), on="cell", how="left", maintain_order="left")
    return found.select(list(SCHEMA)).rechunk()


def _regrets(
    study: Study, place: StudyFolder, cells: Sequence[Cell], rows: pl.DataFrame, workers: Workers
) -> pl.DataFrame:
    """What hinders the best plans on each routing and machine."""
    by_key = {cell.key: cell for cell in cells}
    chosen: list[Cell] = []
    # As who wins: of what fits, or of all where nothing does.
    rows = rows.with_columns(fits=fitting_rows(study, rows))
    timed = rows.filter(pl.col("tokens_per_second").is_not_null() & ~pl.col("needs_future"))
    for part in timed.partition_by("trace", "batch", "hardware_digest", "model_shape", maintain_order=True):
        candidates = part.filter("fits") if part["fits"].any() else part
        best = candidates.sort("tokens_per_second", descending=True, maintain_order=True).head(study.regret)
        chosen += [by_key[key] for key in best["cell"]]
    chosen = list({cell.key: cell for cell in chosen}.values())
    done = set(place.pieces(files.REGRETS, REGRET)["cell"])
    for cell, found in workers.run(cell_hindrances, [cell for cell in chosen if cell.key not in done]):
        if found is not None:
            row = {"cell": cell.key} | found
            place.add(files.REGRETS, cell.key[:32], pl.DataFrame([row], schema=REGRET))
    order = pl.DataFrame({"cell": [cell.key for cell in chosen]}, schema={"cell": pl.String})
    return order.join(place.pieces(files.REGRETS, REGRET), on="cell", how="inner", maintain_order="left").rechunk()


def cell_hindrances(shared: SharedRoutings, cell: Cell, on_piece: OnPiece | None = None) -> Row | None:
    """One cell's regret and sensitivities; None where they cannot be told, or the trace is too long for them."""
    known = shared.of(cell.routing)
    if not known.bounded(cell.bounds) or cell.machine is None or cell.plan.precision is not None:
        return None

    def progress(tokens: int) -> None:
        if on_piece is not None:
            on_piece()

    try:
        setting = setting_of(known, cell)
        played = known.played(setting, progress)
        (done,) = run(played.trace, setting.spec, [setting.target], progress=progress, keep=True)
        regret = find_regret(played.trace, setting, done, progress)
        if played.altered is not None:  # a better machine's cache would alter otherwise
            return msgspec.structs.asdict(regret)
        steps, demands = known.requests.steps, known.demands
        better = find_sensitivities(known.trace, setting, progress, steps=steps, demands=demands)
        return msgspec.structs.asdict(regret) | {BETTER[one.part, one.times]: one.tokens_per_second for one in better}
    except TracekitError:
        return None


def summarise(
    study: Study,
    cells: Sequence[Cell],
    rows: pl.DataFrame,
    settings: list[SettingSummary],
    once: dict[str, list[int]],
    digests: dict[str, str],
) -> Summary:
    """study.json: who won, what failed, and what it all was made from; `digests` of the tables by file name."""
    failed = rows.filter(pl.col("error").is_not_null())
    reasons = failed.group_by("error", maintain_order=True).agg(pl.len(), pl.first("plan"))
    # What does not fit is no candidate: how many do not, settings say in their notes.
    fitting = rows.filter(fitting_rows(study, rows))
    own = (fitting if len(fitting) else rows).select("warnings", "warning_codes")
    told = own.explode("warnings", "warning_codes").drop_nulls()
    warnings = told.filter(pl.col("warning_codes") != "does not fit")["warnings"]
    return Summary(
        objective=study.objective,
        baseline=study.baseline,
        max_device_bytes=study.max_device_bytes,
        quality_loss=study.quality_loss,
        cells=len(cells),
        failed=len(failed),
        errors=[Failure(error=error, cells=count, first_plan=plan) for error, count, plan in reasons.iter_rows()],
        settings=settings,
        warnings=[*said_of_traces(study.traces, once), *warnings.unique(maintain_order=True)],
        counted_once=once,
        statistics=study.statistics,
        search=study.search,
        provenance=Provenance(
            moe_tracekit=own_version(),
            results_version=RESULTS,
            traces={cell.routing.path: cell.routing.digest for cell in cells},
            hardware=[machine for machine in study.machines if machine is not None],
            model_shapes=[shape.name for shape in study.shapes if shape is not None],
            quality=None if study.quality is None else quality_source(study.quality),
        ),
        files=digests,
    )


def quality_source(found: Measurement) -> QualitySource:
    """Which measurement it is."""
    return QualitySource(
        model=found.model.name,
        model_digest=found.model.digest,
        text_digest=found.text.digest,
        documents=found.text.documents,
        tokens=found.text.tokens,
    )
