"""What a study's report draws beside its results: which experts each trace uses, and one token under each winner."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from engine.replay.bars import bars
from engine.replay.passes import run
from engine.simulator import log
from experiments.study.cell_results import setting_of
from experiments.study.cells import Cell
from experiments.study.shared import SharedRouting
from tracekit.demand import iter_demand, step_starts
from tracekit.prefix import first_steps
from tracekit.rows import DECODE
from tracekit.trace import Trace

WARM = 200
"""The token that is drawn has at most so many decode steps before it: a cache is as full as it gets by then."""
MOST_BARS = 160

Row = dict[str, Any]


def expert_rows(paths: Iterable[str]) -> list[Row]:
    """Of each trace as recorded, each expert's share of its layer's lookups (`EXPERTS`)."""
    found = []
    for path in paths:
        trace = Trace.open(path)
        counts = np.zeros(trace.layers * trace.num_experts, np.int64)
        for demand in iter_demand(trace):
            counts += np.bincount(demand.keys, minlength=len(counts))
        by_layer = counts.reshape(trace.layers, trace.num_experts)
        for layer, row in enumerate(by_layer):
            for expert in range(trace.manifest.experts_per_layer[layer]):
                found.append(
                    {
                        "trace": path,
                        "model": trace.manifest.model.id,
                        "layer": trace.manifest.moe_layers[layer],
                        "expert": expert,
                        "lookups": int(row[expert]),
                        "share": float(row[expert] / max(int(row.sum()), 1)),
                    }
                )
    return found


def timeline_rows(cell: Cell, routing: SharedRouting) -> list[Row]:
    """One decode step of the cell, piece of work by piece of work (`TIMELINE`); as many layers as can be told apart."""
    trace = routing.trace
    phase = trace.phase[step_starts(trace.step)[:-1]]
    decode = np.flatnonzero(phase == DECODE)
    if cell.machine is None or len(decode) == 0:
        return []
    step = int(decode[min(len(decode) // 2, WARM)])
    begun = first_steps(trace, step + 1)
    setting = setting_of(routing, cell)
    (done,) = run(begun, setting.spec, [setting.target], log=range(step, step + 1))
    assert done.timeline is not None
    return drawn_rows(done.timeline.log, trace) if len(done.timeline.log) else []


def drawn_rows(rows: np.ndarray, trace: Trace) -> list[Row]:
    """Bars of the first layers of a logged step, about `MOST_BARS` of them."""
    layers = rows[:, log.VISIT] % trace.layers
    counts = np.cumsum(np.bincount(layers, minlength=trace.layers))
    most = max(1, int(np.searchsorted(counts, MOST_BARS, side="right")))
    step = int(rows[0, log.VISIT]) // trace.layers
    kept = rows[(layers < most) & (rows[:, log.VISIT] // trace.layers == step)]
    order = np.lexsort((kept[:, log.END], kept[:, log.BEGIN]))
    return [
        {
            "step": step,
            "layer": int(row[log.VISIT]) % trace.layers,
            "layers": min(most, trace.layers),
            "of_layers": trace.layers,
            **{name: bar[name] for name in ("lane", "kind", "label")},
            "begin_ms": bar["begin"],
            "end_ms": bar["end"],
        }
        for row, bar in zip(kept[order], bars(kept[order], trace.num_experts), strict=True)
    ]


def winners(cells: Sequence[Cell], settings: Sequence[Row]) -> list[tuple[Row, Cell]]:
    """Each setting that has a winner and a machine, with the winner's cell on the first trace."""
    found = []
    for setting in settings:
        for cell in cells:
            names = (
                None if cell.machine is None else cell.machine.name,
                None if cell.shape is None else cell.shape.name,
                cell.routing.batch,
            )
            own = (setting["hardware"], setting["model_shape"], setting["batch"])
            if cell.machine is not None and names == own and cell.plan.to_toml() == setting["plan_toml"]:
                found.append((setting, cell))
                break
    return found
