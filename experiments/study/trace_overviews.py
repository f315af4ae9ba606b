"""What a report shows of a study's traces, whatever the machine: curves over the cache's size, and use of experts."""

from pathlib import Path
from shlex import quote

import numpy as np
import polars as pl

from engine.plan.capacity import Capacity
from experiments.report.content import CurvePoint, CurveSet, HeatMap
from experiments.study import study_folder as files
from experiments.study.contestants import plan_of
from experiments.study.grid import eviction_name
from policies.registry import eviction_policy

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


def curve_sets(curves: pl.DataFrame, rows: pl.DataFrame) -> list[CurveSet]:
    """Curves of one pass, and what plans without prefetching found at the sizes of the grid."""
    sets = []
    for part in curves.partition_by("trace", "batch", "scope", maintain_order=True):
        trace, batch, scope = part.row(0)[:3]
        unit = "/layer" if scope == "layer" else ""
        points = {
            (row["policy"], row["share"]): CurvePoint(
                policy=row["policy"],
                capacity=f"{row['slots']}{unit}",
                share_held=row["share"],
                hit_ratio=row["hit_ratio"],
                is_bound=eviction_policy(row["policy"]).bound,
            )
            for row in part.iter_rows(named=True)
        }
        slots = int(max(part["slots"]))
        own = rows.filter(
            (pl.col("trace") == trace)
            & pl.col("batch").eq_missing(pl.lit(batch, pl.Int64))
            & (pl.col("prefetch") == "none")
        )
        for (toml,), cell in own.group_by("plan_toml", maintain_order=True):
            plan = plan_of(str(toml))
            share = _share(plan.capacity, scope, slots)
            name = eviction_name(plan)
            if share is not None and name not in ("lru", "belady"):
                points[name, share] = CurvePoint(
                    policy=name,
                    capacity=plan.cache.capacity,
                    share_held=share,
                    hit_ratio=float(cell["hit_ratio"][0]),
                    is_bound=bool(cell["needs_future"][0]),
                )
        title = Path(trace).name + (f", batches of {batch}" if batch is not None else "")
        title += ", a cache for each layer" if scope == "layer" else ", one cache for all layers"
        again = f"tracekit curve {quote(trace)} --policy lru,belady --scope {scope}"
        if batch is not None:
            again = f"# numbers: {files.CURVES} in the study's folder (`tracekit curve` draws a trace as recorded)"
        again += "\n# other policies: rows of results.parquet without prefetching"
        sets.append(CurveSet(title=title, points=tuple(points.values()), again=again))
    return sets


def _share(capacity: Capacity, scope: str, slots: int) -> float | None:
    if capacity.unit == "bytes" or capacity.per_layer != (scope == "layer"):
        return None
    return min(1.0, float(capacity.amount) / (slots if capacity.unit == "slots" else 1))
