"""What a study's report draws beside its results: which experts each trace uses, and one token under each winner."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from engine.replay.bars import bars
from engine.replay.passes import run
from engine.simulator import log
from experiments.study.cell_results import setting_of
from experiments.study.cells import Cell
from experiments.study.conditions import Conditions
from experiments.study.schema import EXPERTS, TIMELINE
from experiments.study.shared import SharedRouting, SharedRoutings
from experiments.study.study_json import SettingSummary
from tracekit.demand import iter_demand, step_starts
from tracekit.prefix import first_steps
from tracekit.rows import DECODE
from tracekit.trace import Trace

WARM = 200
"""The token that is drawn has at most so many decode steps before it: a cache is as full as it gets by then."""
MOST_BARS = 160


def expert_rows(paths: Iterable[str]) -> pl.DataFrame:
    """Of each trace as recorded, each expert's share of its layer's lookups (`EXPERTS`)."""
    found = [pl.DataFrame(schema=EXPERTS)]
    for path in paths:
        trace = Trace.open(path)
        counts = np.zeros(trace.layers * trace.num_experts, np.int64)
        for demand in iter_demand(trace):
            counts += np.bincount(demand.keys, minlength=len(counts))
        for layer, lookups in enumerate(counts.reshape(trace.layers, trace.num_experts)):
            own = lookups[: trace.manifest.experts_per_layer[layer]]
            columns = {
                "trace": path,
                "model": trace.manifest.model.id,
                "layer": trace.manifest.moe_layers[layer],
                "expert": np.arange(len(own)),
                "lookups": own,
                "share": own / max(int(lookups.sum()), 1),
            }
            found.append(pl.DataFrame(columns, schema=EXPERTS))
    return pl.concat(found).rechunk()


def timeline_rows(cells: Sequence[Cell], settings: Sequence[SettingSummary]) -> pl.DataFrame:
    """One token under each winner that has a machine, on the first trace (`TIMELINE`)."""
    shared = SharedRoutings()
    found = [pl.DataFrame(schema=TIMELINE)]
    for summary in settings:
        cell = next((cell for cell in cells if cell.machine is not None and _won(cell, summary)), None)
        if cell is not None and len(logged := drawn_step(cell, known := shared.of(cell.routing))):
            about = summary.conditions._asdict() | {"plan": summary.winner, "trace": cell.routing.path}
            columns = {name: pl.lit(value, TIMELINE[name]) for name, value in about.items()}
            found.append(drawn_rows(logged, known.trace).with_columns(**columns).select(list(TIMELINE)))
    return pl.concat(found).rechunk()


def _won(cell: Cell, summary: SettingSummary) -> bool:
    machine, shape = (None if one is None else one.name for one in (cell.machine, cell.shape))
    engine = None if cell.machine is None else cell.machine.engine.name
    own = Conditions(machine, shape, cell.routing.batch, engine) == summary.conditions
    return own and cell.plan.to_toml() == summary.plan_toml


def drawn_step(cell: Cell, routing: SharedRouting) -> np.ndarray:
    """The log of one decode step of the cell (engine.simulator.log), i64 [rows, COLUMNS]; no rows if there is none."""
    trace = routing.trace
    phase = trace.phase[step_starts(trace.step)[:-1]]
    decode = np.flatnonzero(phase == DECODE)
    if len(decode) == 0:
        return np.zeros((0, log.COLUMNS), np.int64)
    step = int(decode[min(len(decode) // 2, WARM)])
    setting = setting_of(routing, cell)
    played = routing.played(setting).trace
    (done,) = run(first_steps(played, step + 1), setting.spec, [setting.target], log=range(step, step + 1))
    assert done.timeline is not None
    return done.timeline.log


def drawn_rows(rows: np.ndarray, trace: Trace) -> pl.DataFrame:
    """Bars of the first layers of a logged step, about `MOST_BARS` of them: `TIMELINE` but for whose they are."""
    layers = rows[:, log.VISIT] % trace.layers
    counts = np.cumsum(np.bincount(layers, minlength=trace.layers))
    most = max(1, int(np.searchsorted(counts, MOST_BARS, side="right")))
    step = int(rows[0, log.VISIT]) // trace.layers
    kept = rows[(layers < most) & (rows[:, log.VISIT] // trace.layers == step)]
    kept = kept[np.lexsort((kept[:, log.END], kept[:, log.BEGIN]))]
    return pl.DataFrame(bars(kept, trace.num_experts)).select(
        step=pl.lit(step, pl.Int64),
        layer=pl.Series(kept[:, log.VISIT] % trace.layers),
        layers=pl.lit(min(most, trace.layers), pl.Int64),
        of_layers=pl.lit(trace.layers, pl.Int64),
        lane="lane",
        kind="kind",
        label="label",
        begin_ms="begin",
        end_ms="end",
    )
