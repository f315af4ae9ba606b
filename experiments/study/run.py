"""Running a study: what is missing is computed, what is there is read, and all of it is concluded from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from engine.curves.stack_curve import STACK_CURVES
from engine.replay.advice import DOES_NOT_FIT
from engine.replay.passes import run
from engine.replay.regret import find_regret
from experiments.study import store as files
from experiments.study.cell_results import described, measure, setting_of
from experiments.study.cells import RESULTS, Cell, Routing, cells_of, group_key, groups
from experiments.study.conclude import SETTING as NAMED
from experiments.study.conclude import conclude, fitting_rows
from experiments.study.grid import Study
from experiments.study.notes import left_out, where
from experiments.study.schema import CURVES, EXPERTS, REGRET, SCHEMA, SEARCH, TIMELINE
from experiments.study.search import search, told, words
from experiments.study.shared import SharedRoutings
from experiments.study.store import Store
from experiments.study.winner_timelines import expert_rows, timeline_rows, winners
from experiments.study.workers import Workers
from tracekit.errors import TracekitError
from tracekit.version import own_version

CURVE_POINTS = 64
Say = Callable[[float], object]


def run_study(
    study: Study, folder: Path, workers: Workers, *, source: str = "", progress: Say | None = None
) -> dict[str, Any]:
    """Run `study` into `folder`, or go on with what is there; returns the summary (study.json).

    Whatever was interrupted and resumed, and whoever computed it, the same study leaves the same bytes in
    study.json, winner.plan.toml and every .parquet file (experiments.study.schema).

    Args:
        source: the study's file as text, kept in the folder.
        progress: called with the number of cells just finished, those found finished included; a cell on a beginning of
            the traces counts as that share of one.

    Raises TracekitError when the study as a whole is impossible; a plan that is becomes a row with an `error`.
    """
    cells = cells_of(study)
    with Store(folder) as store:
        store.text(files.COPY, source)

        def replay(some: Sequence[Cell], share: float) -> pl.DataFrame:
            return _rows(store, some, workers, None if progress is None else lambda done: progress(done * share))

        cells, rounds = search(study, cells, replay)
        rows = replay(cells, 1.0)
        searched = pl.DataFrame(rounds, schema=SEARCH)
        tables = {
            files.RESULTS: rows,
            files.SEARCH: searched,
            files.CURVES: _curves(cells, workers),
            files.REGRET: _regrets(study, store, cells, rows, workers),
            files.EXPERTS: pl.DataFrame(expert_rows(study.traces), schema=EXPERTS),
        }
        summary = summarise(study, cells, rows, searched)
        tables[files.TIMELINE] = pl.DataFrame(_timelines(cells, summary["settings"]), schema=TIMELINE)
        summary |= {"files": {name: store.frame(name, table) for name, table in tables.items()}}
        store.text(files.SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
        winner = next((setting for setting in summary["settings"] if setting["plan_toml"] is not None), None)
        if winner is None:
            store.remove(files.WINNER)
        else:
            store.text(files.WINNER, winning_plan(winner))
    return summary


def _rows(store: Store, cells: Sequence[Cell], workers: Workers, progress: Say | None) -> pl.DataFrame:
    """The results of all cells, in their order."""
    done = store.pieces(files.PIECES, SCHEMA)
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
            store.add(files.PIECES, group_key(group), sound, SCHEMA)
        if progress is not None:
            progress(len(group))
    done = pl.concat([store.pieces(files.PIECES, SCHEMA), pl.DataFrame(failed, schema=SCHEMA)])
    # Where traces, policies and profiles lie is no part of the key: results name them as this study does.
    named = [described(cell) for cell in cells]
    order = pl.DataFrame(named, schema={name: SCHEMA[name] for name in named[0]})
    found = order.join(done.drop(set(named[0]) - {"cell"}), on="cell", how="left", maintain_order="left")
    return found.select(list(SCHEMA)).rechunk()


def _curves(cells: Sequence[Cell], workers: Workers) -> pl.DataFrame:
    """Hit ratio against cache size, of the policies that one pass tells all about; not of traces that take too long."""
    asked = {(cell.routing, "layer" if cell.plan.capacity.per_layer else "global"): cell.bounds for cell in cells}
    tasks = [(routing, scope, bounds) for (routing, scope), bounds in asked.items()]
    found = dict(workers.run(curve_rows, tasks))
    return pl.DataFrame([row for task in tasks for row in found[task]], schema=CURVES)


def curve_rows(
    shared: SharedRoutings, task: tuple[Routing, Any, bool | None], on_piece: object = None
) -> list[dict[str, Any]]:
    """The curves of one routing."""
    routing, scope, asked = task
    known = shared.of(routing)
    if not known.bounded(asked) or known.trace.tokens == 0:
        return []
    per_layer = known.trace.manifest.experts_per_layer
    most = max(per_layer) if scope == "layer" else sum(per_layer)
    rows = []
    for policy in STACK_CURVES:
        curve = known.curve(policy, scope)
        for slots in sorted({int(size) for size in np.linspace(0, most, min(CURVE_POINTS, most) + 1).round()}):
            hits, lookups = curve.hits[:, slots], curve.lookups
            held = slots * (len(per_layer) if scope == "layer" else 1) / sum(per_layer)
            rows.append(
                {
                    "trace": routing.path,
                    "batch": routing.batch,
                    "scope": scope,
                    "policy": policy,
                    "slots": slots,
                    "share": min(1.0, held),
                    "hit_ratio": int(hits.sum()) / max(int(lookups.sum()), 1),
                    "decode_hit_ratio": int(hits[1]) / max(int(lookups[1]), 1),
                }
            )
    return rows


def _regrets(study: Study, store: Store, cells: Sequence[Cell], rows: pl.DataFrame, workers: Workers) -> pl.DataFrame:
    """What hinders the best plans on each routing and machine."""
    by_key = {cell.key: cell for cell in cells}
    chosen: list[Cell] = []
    # As who wins: of what fits, or of all where nothing does.
    rows = rows.with_columns(fits=pl.Series(fitting_rows(study, rows), dtype=pl.Boolean))
    timed = rows.filter(pl.col("tokens_per_second").is_not_null() & ~pl.col("needs_future"))
    for part in timed.partition_by("trace", "batch", "hardware_digest", "model_shape", maintain_order=True):
        candidates = part.filter("fits") if part["fits"].any() else part
        best = candidates.sort("tokens_per_second", descending=True, maintain_order=True).head(study.regret)
        chosen += [by_key[key] for key in best["cell"]]
    chosen = list({cell.key: cell for cell in chosen}.values())
    done = set(store.pieces(files.REGRETS, REGRET)["cell"])
    for cell, row in workers.run(regret_row, [cell for cell in chosen if cell.key not in done]):
        if row is not None:
            store.add(files.REGRETS, cell.key[:32], [row], REGRET)
    order = pl.DataFrame({"cell": [cell.key for cell in chosen]}, schema={"cell": pl.String})
    return order.join(store.pieces(files.REGRETS, REGRET), on="cell", how="inner", maintain_order="left").rechunk()


def regret_row(
    shared: SharedRoutings, cell: Cell, on_piece: Callable[[], object] | None = None
) -> dict[str, Any] | None:
    """One cell's regret; None where it cannot be told, or the trace is too long for it."""
    known = shared.of(cell.routing)
    if not known.bounded(cell.bounds) or cell.machine is None:
        return None

    def progress(tokens: int) -> None:
        if on_piece is not None:
            on_piece()

    try:
        setting = setting_of(known, cell)
        (done,) = run(known.trace, setting.spec, [setting.target], progress=progress, keep=True)
        regret = find_regret(known.trace, setting, done, progress)
    except TracekitError:
        return None
    return {"cell": cell.key} | msgspec.structs.asdict(regret)


def _timelines(cells: Sequence[Cell], settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A token under each winner."""
    shared = SharedRoutings()
    found = []
    for setting, cell in winners(cells, settings):
        about = {name: setting[name] for name in NAMED} | {"plan": setting["winner"], "trace": cell.routing.path}
        found += [about | row for row in timeline_rows(cell, shared.of(cell.routing))]
    return found


def summarise(study: Study, cells: Sequence[Cell], rows: pl.DataFrame, searched: pl.DataFrame) -> dict[str, Any]:
    """study.json: who won, what failed, and what it all was made from."""
    failed = rows.filter(pl.col("error").is_not_null())
    reasons = failed.group_by("error", maintain_order=True).agg(pl.len(), pl.first("plan"))
    # What does not fit is no candidate: how many do not, settings say in their notes.
    fitting = rows.filter(pl.Series(fitting_rows(study, rows), dtype=pl.Boolean))
    found = (fitting if len(fitting) else rows)["warnings"].to_list()
    warnings = [warning for own in found for warning in own or () if not warning.startswith(DOES_NOT_FIT)]
    return {
        "objective": study.objective,
        "max_device_bytes": study.max_device_bytes,
        "cells": len(cells),
        "failed": len(failed),
        "errors": [{"error": error, "cells": count, "first_plan": plan} for error, count, plan in reasons.iter_rows()],
        "settings": [setting | _searched(setting, searched) for setting in conclude(study, rows)],
        "warnings": list(dict.fromkeys(warnings)),
        "statistics": msgspec.to_builtins(study.statistics),
        "search": msgspec.to_builtins(study.search),
        "provenance": {
            "moe_tracekit": own_version(),
            "results_version": RESULTS,
            "traces": {cell.routing.path: cell.routing.digest for cell in cells},
            "hardware": [msgspec.to_builtins(machine) for machine in study.machines if machine is not None],
            "model_shapes": [shape.name for shape in study.shapes if shape is not None],
        },
    }


def _searched(setting: dict[str, Any], searched: pl.DataFrame) -> dict[str, Any]:
    """What the search did in one setting, and a note of it."""
    own = searched.filter(pl.all_horizontal(pl.col(name).eq_missing(pl.lit(setting[name])) for name in NAMED))
    rounds = told(own)
    note = words(rounds)
    large = sum(found["too_large"] for found in rounds)
    notes = left_out([0] * large, setting["room_bytes"]) + ([note] if note else [])
    return {"search": rounds, "notes": [*setting["notes"], *notes]}


def winning_plan(setting: dict[str, Any]) -> str:
    """winner.plan.toml: the plan, and what it won."""
    lines = [setting["statement"], where(setting)]
    return "".join(f"# {line}\n" for line in lines) + str(setting["plan_toml"])
