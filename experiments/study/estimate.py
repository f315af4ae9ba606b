"""How much work a study is, and about how long it takes: every part of it is done once, on the beginning of a trace.

What a new process pays once (reading compiled code from the disk) is counted apart from what grows with the grid. What
has to be compiled first is compiled by the trial, and stays: the study itself then only reads it.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import polars as pl
from numba.core import event

from engine.replay.bounds import clairvoyant
from experiments.study.cell_results import Row, measure, setting_of
from experiments.study.cells import Cell, Routing, groups
from experiments.study.curve_tables import Wanted, curve_rows, wanted_curves
from experiments.study.run_study import cell_hindrances
from experiments.study.schema import SCHEMA
from experiments.study.search import work
from experiments.study.shared import SharedRoutings
from experiments.study.study_file import Study
from experiments.study.study_folder import parquet
from experiments.study.study_tables import read_table
from experiments.study.winner_timelines import drawn_step
from tracekit.durable import write_synced
from tracekit.errors import TracekitError

MOST_KINDS = 24
TRIED_LOOKUPS = 200_000
"""Of a trace that is longer, a beginning with so many is tried."""


class Took(NamedTuple):
    """Seconds that a piece of work takes once in a process, and each time."""

    once: float
    each: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """`passes` of decisions, timed as `cells`; `seconds` with so many threads, None where nothing could be tried.

    `compiled`: seconds that this trial spent on compiling, which the study need not spend again.
    """

    passes: int
    cells: int
    seconds: float | None
    compiled: float


def estimate(study: Study, cells: Sequence[Cell], threads: int) -> Estimate:
    """Try a group of each kind (routing, policies), bounds, a regret, a curve, and a write."""
    trial = _Trial()
    group_of = groups(cells)
    found: dict[tuple[Routing, str, str, int, int, str], float | None] = {}
    known = []
    for group in group_of:
        plan = group[0].plan
        kind = (
            group[0].routing,
            plan.eviction.policy,
            plan.prefetch.predictor,
            plan.prefetch.count,
            len(group),
            plan.routing.policy + str(plan.precision is not None),
        )
        if kind not in found and len(found) < MOST_KINDS:
            found[kind] = trial.group(group)
        if (seconds := found.get(kind)) is not None:
            known.append(seconds)
    if not known:
        return Estimate(len(group_of), len(cells), None, trial.compiled)
    passes = sum(known) * len(group_of) / len(known) * work(study, len(cells)) / max(len(cells), 1)
    passes += trial.bounds(group_of)
    passes += trial.regrets(study, cells)
    passes += trial.curves(study, cells)
    written = trial.write() * (len(group_of) + 8)
    return Estimate(len(group_of), len(cells), trial.once + passes / threads + written, trial.compiled)


class _Trial:
    """Pieces of work, timed on beginnings of traces; what they take once is added up."""

    def __init__(self) -> None:
        self.shared = SharedRoutings()
        # What has been loaded so far, a study has to load as well.
        self.once, self.compiled = time.process_time(), 0.0
        self._lengths: dict[Routing, tuple[Routing, float]] = {}
        self._rows: list[Row] = []

    def group(self, group: Sequence[Cell]) -> float | None:
        """Seconds of one group's decisions and times; None where it cannot be replayed."""
        short, longer = self._begun(group[0].routing)
        some = [replace(cell, routing=short, bounds=False) for cell in group]
        took = self._timed(lambda: measure(self.shared, some))
        sound = [row for row in measure(self.shared, some) if row.get("error") is None]
        self._rows = sound or self._rows
        return took.each * longer if sound else None

    def bounds(self, group_of: Sequence[Sequence[Cell]]) -> float:
        """Seconds of all clairvoyant decisions: once for each routing and capacity."""
        told: dict[tuple[Routing, str], Cell] = {}
        for group in group_of:
            told.setdefault((group[0].routing, group[0].plan.cache.capacity), group[0])
        first = next(iter(told.values()))
        short, longer = self._begun(first.routing)
        if not SharedRoutings().of(first.routing).bounded(first.bounds):
            return 0.0

        def bound() -> None:
            known = SharedRoutings().of(short)
            setting = setting_of(known, first)
            known.best(clairvoyant(setting.spec), timed=setting.costs is not None)

        return self._tried(bound) * longer * len(told)

    def regrets(self, study: Study, cells: Sequence[Cell]) -> float:
        """Seconds of what hinders the best plans, and of one token under each winner."""
        timed = next((cell for cell in cells if cell.machine is not None), None)
        if timed is None:
            return 0.0
        short, longer = self._begun(timed.routing)
        cell = replace(timed, routing=short)
        settings = len(study.machines) * len(study.shapes) * len(study.batches)
        token = self._tried(lambda: drawn_step(cell, self.shared.of(short)))
        if not study.regret or not SharedRoutings().of(timed.routing).bounded(timed.bounds):
            return token * settings
        routings = len({one.routing for one in cells})
        each = self._tried(lambda: cell_hindrances(self.shared, cell)) * longer
        return token * settings + each * study.regret * routings * len(study.machines) * len(study.shapes)

    def curves(self, study: Study, cells: Sequence[Cell]) -> float:
        """Seconds of all curves."""
        tasks = wanted_curves(cells, study.statistics.level)
        return sum(self._curve(task) for task in tasks)

    def _curve(self, task: Wanted) -> float:
        short, longer = self._begun(task.routing)
        if not SharedRoutings().of(task.routing).bounded(task.bounds):
            return 0.0
        return self._tried(lambda: curve_rows(SharedRoutings(), task._replace(routing=short))) * longer

    def write(self) -> float:
        """Seconds of writing one group's rows, and of reading them again: what is there already, and what was made."""
        rows = pl.DataFrame(self._rows, schema=SCHEMA)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "piece.parquet"

            def both() -> None:
                data = parquet(rows)
                write_synced(path, lambda file: file.write(data))
                read_table(data, SCHEMA)

            return self._timed(both).each

    def _tried(self, do: Callable[[], object]) -> float:
        """Seconds each time; 0 for what cannot be done."""
        try:
            return self._timed(do).each
        except TracekitError:
            return 0.0

    def _timed(self, do: Callable[[], object]) -> Took:
        compiled: list[float] = []
        start = time.perf_counter()
        with event.install_timer("numba:compile", compiled.append):
            do()
        first = time.perf_counter() - start
        start = time.perf_counter()
        do()
        each = time.perf_counter() - start
        spent = sum(compiled)
        self.compiled += spent
        once = max(0.0, first - spent - each)
        self.once += once
        return Took(once, each)

    def _begun(self, routing: Routing) -> tuple[Routing, float]:
        """The beginning of a routing that is tried, and how many times longer the whole is."""
        if routing not in self._lengths:
            trace = routing.open()
            lookups = trace.tokens * trace.layers * trace.top_k
            steps = trace.manifest.steps
            tried = max(1, min(steps, steps * TRIED_LOOKUPS // max(1, lookups)))
            short = routing if tried == steps else replace(routing, steps=tried)
            self._lengths[routing] = (short, steps / tried)
        return self._lengths[routing]
