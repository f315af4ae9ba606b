"""Cells: one plan on one trace, on one machine. A cell's key is a digest of everything its result follows from."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.shapes import ModelShape
from experiments.quality.measurement import Estimate
from experiments.study.once import distinct
from experiments.study.sources import policies_digest, sources_digest
from experiments.study.study_file import Study
from policies.learned.artefact import CARD, MOST_CARD_BYTES
from tracekit.errors import PlanError
from tracekit.opening import read_file
from tracekit.prefix import first_steps
from tracekit.shards import file_digest
from tracekit.trace import Trace
from tracekit.version import own_version

RESULTS = 2
"""Version of what a cell's row means."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing of a cell: a trace, perhaps as if its requests had been batched, perhaps only its beginning."""

    path: str
    batch: int | None
    digest: str
    """Of the trace as recorded."""
    steps: int | None = None
    """Only so many steps of it."""

    def open(self) -> Trace:
        """The trace, as it is to be replayed."""
        trace = Trace.open(self.path)
        if self.batch is not None:
            from tracekit.batched import batched

            trace = batched(trace, self.batch)
        return trace if self.steps is None else first_steps(trace, self.steps)


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results to be. `loss` was measured elsewhere: it stands in the row, and is no part of its key."""

    key: str
    routing: Routing
    plan: Plan
    machine: HardwareProfile | None
    shape: ModelShape | None
    bounds: bool | None
    reshape: str | None = None
    loss: Estimate | None = None


def cells_of(study: Study) -> list[Cell]:
    """Every cell of the grid, in the order of the file: traces (the same twice only once), batches, machines, shapes,
    plans."""
    found = []
    for path, digest in distinct(study.traces).items():
        for batch in study.batches:
            routing = Routing(path, batch, digest)
            for machine in study.machines:
                for shape in study.shapes:
                    for plan in study.plans:
                        key = cell_key(routing, plan, machine, shape, study.bounds, study.reshape)
                        loss = None if study.quality is None else study.quality.loss_of(plan.weights)
                        found.append(Cell(key, routing, plan, machine, shape, study.bounds, study.reshape, loss))
    return found


def cell_key(
    routing: Routing,
    plan: Plan,
    machine: HardwareProfile | None,
    shape: ModelShape | None,
    bounds: bool | None,
    reshape: str | None = None,
) -> str:
    """sha256 of what a cell's row follows from: not where the files lie, but what they hold."""
    tables = plan.to_dict()
    if plan.cache.warm is not None:
        tables["cache"]["warm"] = Trace.open(plan.cache.warm).digest
    if plan.eviction.profile is not None:
        tables["eviction"]["profile"] = _profile_digest(plan.eviction.profile)
    for table, artefact in (("eviction", plan.eviction.artefact), ("prefetch", plan.prefetch.artefact)):
        if artefact is not None:
            tables[table]["artefact"] = _artefact_digest(artefact)
    for table, name in (("eviction", "policy"), ("prefetch", "predictor")):
        tables[table][name] = str(tables[table][name]).rpartition("/")[2]
    meaning: dict[str, Any] = {
        "results": RESULTS,
        "version": own_version(),
        "sources": sources_digest(),
        "policies": policies_digest(plan.eviction.policy, plan.prefetch.predictor),
        "trace": routing.digest,
        "batch": routing.batch,
        "steps": routing.steps,
        "plan": tables,
        "hardware": msgspec.to_builtins(machine),
        "shape": msgspec.to_builtins(shape),
        "bounds": bounds,
        "reshape": reshape,
    }
    return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()


@cache
def _profile_digest(path: str) -> str:
    return file_digest(Path(path)) if Path(path).is_file() else Trace.open(path).digest


def _artefact_digest(path: str) -> str:
    """Of a fitted predictor: its card names its tensors' digest."""
    try:
        return hashlib.sha256(read_file(Path(path) / CARD, MOST_CARD_BYTES)).hexdigest()
    except OSError as error:
        raise PlanError(f"predictor {path}: {error.strerror or error}; tracekit fit makes one") from None


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells in groups that may share decisions: those of one routing whose plans differ in weights or lane alone.

    Whether they do share them depends on sizes, which `experiments.study.cell_results` looks at.
    """
    found: dict[tuple[Routing, bytes], list[Cell]] = {}
    for cell in cells:
        plan = cell.plan
        decided = msgspec.json.encode((plan.cache, plan.eviction, plan.prefetch), order="deterministic")
        found.setdefault((cell.routing, decided), []).append(cell)
    return list(found.values())


def group_key(cells: Sequence[Cell]) -> str:
    """A name for a group of cells."""
    return hashlib.sha256("".join(sorted(cell.key for cell in cells)).encode()).hexdigest()[:32]
