"""What a report shows of a study's traces, whatever the machine: curves over the cache's size, and use of experts."""

from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import polars as pl

from engine.plan.capacity import Capacity
from experiments.report.content import CurvePoint, CurveSet, HeatMap
from experiments.study import study_folder as files
from experiments.study.contestants import plan_of
from experiments.study.curve_tables import hit_interval
from experiments.study.grid import eviction_name

FIGURE = f"# numbers: {files.EXPERTS} in the study's folder; the picture: tracekit report DIR --figures FIGURES"


def heat_maps(experts: pl.DataFrame) -> list[HeatMap]:
    """Which experts each trace uses."""
    found = []
    for part in experts.partition_by("trace", maintain_order=True):
        layers = part["layer"].unique(maintain_order=True).to_list()
        shares = np.full((len(layers), int(max(part["expert"])) + 1), np.nan)
        place = part["layer"].replace_strict(layers, range(len(layers)), return_dtype=pl.Int64).to_numpy()
        shares[place, part["expert"].to_numpy()] = part["share"].to_numpy()
        trace = part["trace"][0]
        title = f"{part['model'][0]} ({Path(trace).name})"
        found.append(
            HeatMap(model=title, shares=shares, layers=tuple(layers), again=f"tracekit info {quote(trace)}\n{FIGURE}")
        )
    return found


def curve_sets(curves: pl.DataFrame, rows: pl.DataFrame, level: float = 0.95) -> list[CurveSet]:
    """Hit ratios of decode steps against cache size, and what plans without prefetching found at the sizes of the grid.

    Of traces that decode nothing, those of all steps.
    """
    sets = []
    for part in curves.partition_by("trace", "batch", "scope", maintain_order=True):
        trace, batch, scope = part.row(0)[:3]
        unit = "/layer" if scope == "layer" else ""
        own = rows.filter(
            (pl.col("trace") == trace)
            & pl.col("batch").eq_missing(pl.lit(batch, pl.Int64))
            & (pl.col("prefetch") == "none")
        )
        column = "decode_hit_ratio" if own["decode_lookups"].sum() else "hit_ratio"
        points = {
            (row["policy"], row["share"]): CurvePoint(
                policy=row["policy"],
                capacity=f"{row['slots']}{unit}",
                share_held=row["share"],
                hit_ratio=row[column],
                low=row["low"],
                high=row["high"],
                is_bound=row["needs_future"],
            )
            for row in part.iter_rows(named=True)
        }
        slots = int(max(part["slots"]))
        for (toml,), cell in own.group_by("plan_toml", maintain_order=True):
            plan = plan_of(str(toml))
            share = _share(plan.capacity, scope, slots) if plan.alike else None
            name = eviction_name(plan)
            if share is not None and (name, share) not in points:
                points[name, share] = _point(cell.row(0, named=True), name, share, column, level)
        title = Path(trace).name + (f", batches of {batch}" if batch is not None else "")
        title += ", a cache for each layer" if scope == "layer" else ", one cache for all layers"
        again = f"tracekit curve {quote(trace)} --policy lru,belady --scope {scope}"
        if batch is not None:
            again = f"# numbers: {files.CURVES} in the study's folder (`tracekit curve` draws a trace as recorded)"
        again += "\n# other policies: rows of results.parquet without prefetching"
        sets.append(CurveSet(title=title, points=tuple(points.values()), again=again))
    return sets


def _point(row: dict[str, Any], name: str, share: float, column: str, level: float) -> CurvePoint:
    """What one plan found."""
    low = high = None
    if row["request_misses"]:
        lookups = np.array(row["request_lookups"])
        ends = hit_interval(lookups - np.array(row["request_misses"]), lookups, level=level)
        low, high = (None if end is None else float(end) for end in ends)
    return CurvePoint(
        policy=name,
        capacity=row["capacity"],
        share_held=share,
        hit_ratio=row[column],
        low=low,
        high=high,
        is_bound=row["needs_future"],
    )


def _share(capacity: Capacity, scope: str, slots: int) -> float | None:
    if capacity.unit == "bytes" or capacity.per_layer != (scope == "layer"):
        return None
    return min(1.0, float(capacity.amount) / (slots if capacity.unit == "slots" else 1))
