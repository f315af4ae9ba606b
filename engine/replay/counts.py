"""Published counts timed: cells of which steps, loads and experts are known, and the routing is not.

A cell becomes decisions that have its counts (engine.replay.spread says how), and these are timed as any others are.
"""

import csv
import math
import os
from collections.abc import Sequence
from typing import Annotated

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.setting import costs_without_predictors
from engine.replay.spread import Spread, Totals, decisions, spread
from engine.shapes import ModelShape
from engine.simulator.costs import Costs
from engine.simulator.limits import Work, check_times
from engine.simulator.timeline import CAUSES, LATE, STALLS, USEFUL, WASTED, Timeline
from tracekit.errors import StudyError
from tracekit.manifest import Manifest, ModelInfo
from tracekit.named_toml import convert
from tracekit.opening import read_file

MOST_LOOKUPS = 50_000_000
"""Of one cell; more would take gigabytes."""
MOST_BYTES = 16 << 20
"""Of a table of counts."""
PIECE = 1 << 18
"""Lookups that are timed at once."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of a table of counts: decode steps, all alike."""

    name: str = ""
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_LOOKUPS)]
    tokens: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 1.0
    """Tokens of a step, that is requests decoded together; a mean."""
    distinct: Positive
    """Distinct experts that a step demands of a layer; a mean."""
    demand_loads: Annotated[int, msgspec.Meta(ge=0)]
    """Demanded experts that were copied, in all steps together."""
    prefetches: Amount = 0.0
    """Experts that a step copies ahead; a mean."""
    useful: Share = 1.0
    """Which share of these is demanded at the visit that they were made for, and so is among its hits."""
    context: Amount = 0.0
    """Tokens of context that a token's attention reads; a mean."""
    ms_per_step: Positive | None = None
    """What was measured, to be compared."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell takes on a machine, in milliseconds of a step. `stall_ms` is by cause; the parts add up.

    `error` is `ms_per_step` over what was measured, less one.
    """

    name: str
    ms_per_step: float
    tokens_per_second: float
    compute_ms: float
    overhead_ms: float
    stall_ms: dict[str, float]
    link_utilisation: float
    hit_ratio: float
    prefetches: dict[str, int]
    measured_ms_per_step: float | None
    error: float | None


def read_cells(path: str | os.PathLike[str]) -> list[Cell]:
    """The rows of a CSV file whose first line names columns of `Cell`; unnamed ones by number. Raises StudyError."""
    try:
        text = read_file(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as problem:
        raise StudyError(f"counts {os.fspath(path)}: cannot be read: {problem.strerror or problem}") from None
    except UnicodeDecodeError as problem:
        raise StudyError(f"counts {os.fspath(path)}: is not text in UTF-8: {problem}") from None
    found = []
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    try:
        table = csv.DictReader(lines, strict=True)
        names = [name.strip() for name in table.fieldnames or ()]
        rows = list(table)
    except csv.Error as problem:
        raise StudyError(f"counts {os.fspath(path)}: not a CSV file: {problem}") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"counts {os.fspath(path)}: two columns are named {twice[0]!r}")
    for number, row in enumerate(rows, 1):
        label = f"counts {os.fspath(path)}, row {number}"
        if None in row or None in row.values():
            raise StudyError(f"{label}: it has not as many values as the first line has names")
        texts = {key.strip(): value.strip() for key, value in row.items() if value.strip()}
        given = {key: _number(text) for key, text in texts.items()} | {"name": texts.get("name", str(number))}
        found.append(convert(given, Cell, label=label, error=StudyError))
    if not found:
        raise StudyError(f"counts {os.fspath(path)}: no rows; the first line names columns, such as steps,demand_loads")
    return found


def _number(text: str) -> int | float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return text if not math.isfinite(value) else int(text) if text.isdigit() else value


def replay_counts(
    cells: Sequence[Cell],
    shape: ModelShape,
    hardware: HardwareProfile,
    plan: Plan | None = None,
    *,
    how: Spread = "even",
    seed: int = 0,
) -> list[Counted]:
    """Time cells of a model of this shape on a machine.

    Args:
        plan: how experts are stored and computed (`weights`, `compute`); all else of it is in the counts already.
        how: which lookups miss (engine.replay.spread); `seed` is for "random".

    Raises StudyError for counts that contradict the shape or each other, PlanError, HardwareError.
    """
    costs = costs_without_predictors(counts_manifest(shape), plan or Plan("0"), hardware, shape)
    return [time_cell(cell, shape, costs, how=how, seed=seed) for cell in cells]


def time_cell(cell: Cell, shape: ModelShape, costs: Costs, *, how: Spread = "even", seed: int = 0) -> Counted:
    """One cell where work costs `costs`. Raises StudyError."""
    totals = totals_of(cell, shape)
    check_times(work_of(cell, totals), costs)
    visits = spread(totals, how, seed)
    timeline = Timeline(costs, totals.slots, totals.experts)
    elapsed, piece = 0, max(1, PIECE * totals.steps // max(totals.lookups, 1))
    for first in range(0, totals.steps, piece):
        last = min(first + piece, totals.steps)
        demand, events = decisions(totals, visits, first, last)
        context = (demand.step_tokens * cell.context).astype("int64")
        elapsed = int(timeline.run(demand, events, context).visit_end[-1])
    per_step = {cause: int(ns) / totals.steps / 1e6 for cause, ns in zip(CAUSES, timeline.spent.sum(0), strict=True)}
    took = elapsed / totals.steps / 1e6
    fates = {"useful": USEFUL, "late": LATE, "wasted": WASTED}
    return Counted(
        name=cell.name,
        ms_per_step=took,
        tokens_per_second=1e9 * totals.tokens / max(elapsed, 1),
        compute_ms=per_step["dense"] + per_step["experts"] + per_step["dequantisation"],
        overhead_ms=per_step["overhead"],
        stall_ms={cause: per_step[cause] for cause in CAUSES[STALLS:]},
        link_utilisation=timeline.link_busy_ns / max(elapsed, 1),
        hit_ratio=1 - totals.misses / totals.lookups,
        prefetches={name: int(timeline.prefetches[fate]) for name, fate in fates.items()},
        measured_ms_per_step=cell.ms_per_step,
        error=None if cell.ms_per_step is None else took / cell.ms_per_step - 1,
    )


def work_of(cell: Cell, totals: Totals) -> Work:
    """What the cell could ask of a machine at most: totals follow their means as evenly as whole numbers go."""
    step_tokens = math.ceil(cell.tokens)
    return Work(
        steps=totals.steps,
        tokens=totals.tokens,
        context=math.ceil(totals.tokens * cell.context),
        top_k=totals.top_k,
        demanded=totals.lookups // totals.layers + totals.steps,
        prefetched=(totals.useful + totals.wasted) // max(totals.layers - 1, 1) + totals.steps,
        step_tokens=step_tokens,
        step_context=math.ceil(step_tokens * cell.context),
    )


def totals_of(cell: Cell, shape: ModelShape) -> Totals:
    """The cell's counts over all steps. Raises StudyError where they contradict the shape or each other."""
    label = f"counts {cell.name!r}" if cell.name else "counts"
    layers = len(shape.moe_layers)
    most = min(float(shape.experts), cell.tokens * shape.top_k)
    if cell.distinct > most:
        raise StudyError(f"{label}: {cell.distinct:g} distinct experts of a layer; {shape.name} has at most {most:g}")
    lookups = round(cell.steps * layers * cell.distinct)
    tokens = round(cell.steps * cell.tokens)
    if max(lookups, cell.steps * layers) > MOST_LOOKUPS or tokens * cell.steps > MOST_LOOKUPS**2:
        raise StudyError(f"{label}: {lookups} lookups are too many; give fewer steps, and demand_loads in proportion")
    if cell.demand_loads > lookups or lookups == 0:
        raise StudyError(f"{label}: {cell.demand_loads} demand loads of {lookups} lookups (steps x layers x distinct)")
    ahead = round(cell.steps * cell.prefetches)
    useful = round(ahead * cell.useful)
    return Totals(
        steps=cell.steps,
        layers=layers,
        experts=shape.experts,
        top_k=shape.top_k,
        tokens=tokens,
        lookups=lookups,
        misses=cell.demand_loads,
        useful=useful,
        wasted=ahead - useful,
    )


def counts_manifest(shape: ModelShape) -> Manifest:
    """A model of this shape, of which no routing is known."""
    layers = len(shape.moe_layers)
    return Manifest(
        source="counts",
        model=ModelInfo(id=shape.name, family=shape.name),
        moe_layers=sorted(shape.moe_layers),
        model_layers=shape.layers,
        experts_per_layer=[shape.experts] * layers,
        top_k=shape.top_k,
    )
