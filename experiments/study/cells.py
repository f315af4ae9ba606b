"""Cells: one plan on one trace, on one machine. A cell's key is a digest of everything its result follows from."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.carried import NAMED
from engine.plan.placement import load_placement, parse_pinned
from engine.plan.plan import Plan
from engine.shapes import ModelShape
from experiments.quality.measurement import Estimate
from experiments.study.fitting import Fitting, is_auto
from experiments.study.once import distinct
from experiments.study.sources import policies_digest, sources_digest
from experiments.study.study_file import Study
from policies.learned.artefact import CARD, MOST_CARD_BYTES
from tracekit.errors import CapacityError, PlanError
from tracekit.labels import read_labels
from tracekit.opening import read_file
from tracekit.popularity import profile_digest
from tracekit.prefix import first_steps
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
    capacity_given: str | None = None
    """The capacity as the study says it; `auto`, where the plan has what that became."""
    refused: str | None = None
    """Why `auto` became nothing."""


def cells_of(study: Study) -> list[Cell]:
    """Every cell of the grid, in the order of the file: traces (the same twice only once), batches, machines, shapes,
    plans.

    A plan whose capacity is `auto` has the slots that its machine leaves for it (`experiments.study.fitting`). Where
    the grid has the same plan with that capacity, too, the two are one cell.
    """
    traces = distinct(study.traces).items()
    routings = {batch: [Routing(path, batch, digest) for path, digest in traces] for batch in study.batches}
    fitting = Fitting(routings, study.max_device_bytes, study.reshape)
    losses = None if study.quality is None else study.quality.losses()
    found: dict[str, Cell] = {}
    for place in range(len(traces)):
        for batch, machine, shape, given in product(study.batches, study.machines, study.shapes, study.plans):
            plan, refused = given, None
            if is_auto(given) and machine is not None:
                try:
                    plan = fitting.plan(given, batch, machine, shape)
                except CapacityError as error:
                    refused = str(error)
            routing, asked = routings[batch][place], given.cache.capacity
            key = cell_key(routing, plan, machine, shape, study.bounds, study.reshape)
            loss = None if losses is None else losses.of(plan)
            if key not in found or is_auto(given):
                found[key] = Cell(key, routing, plan, machine, shape, study.bounds, study.reshape, loss, asked, refused)
    return list(found.values())


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
    for name, path in (("warm", plan.cache.warm_trace), ("split_from", plan.cache.split_from)):
        if path is not None:
            tables["cache"][name] = Trace.open(path).digest
    if plan.cache.warm_file is not None:
        tables["cache"]["warm"] = _placement_digest(plan.cache.warm_file)
    if plan.placement.labels is not None:
        tables["placement"]["labels"] = _labels_digest(plan.placement.labels)
    if plan.placement.profile is not None:
        tables["placement"]["profile"] = _profile_digest(plan.placement.profile)
    elif plan.placement.pinned is not None and (file := parse_pinned(plan.placement.pinned).file) is not None:
        tables["placement"]["pinned"] = _placement_digest(file)
    if plan.eviction.profile is not None:
        tables["eviction"]["profile"] = _profile_digest(plan.eviction.profile)
    if plan.precision is not None and plan.precision.profile is not None:
        tables["precision"]["profile"] = _profile_digest(plan.precision.profile)
    if plan.routing.profile is not None:
        tables["routing"]["profile"] = _profile_digest(plan.routing.profile)
    for table, artefact in (("eviction", plan.eviction.artefact), ("prefetch", plan.prefetch.artefact)):
        if artefact is not None:
            tables[table]["artefact"] = _artefact_digest(artefact)
    for table, name in NAMED.items():
        if table in tables:
            tables[table][name] = str(tables[table][name]).rpartition("/")[2]
    meaning: dict[str, Any] = {
        "results": RESULTS,
        "version": own_version(),
        "sources": sources_digest(),
        "policies": policies_digest(
            plan.eviction.policy,
            plan.prefetch.predictor,
            plan.admission.policy,
            plan.routing.policy,
            None if plan.precision is None else plan.precision.rule,
        ),
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
    return profile_digest(Path(path))


def _placement_digest(path: str) -> str:
    return hashlib.sha256(repr(load_placement(path)).encode()).hexdigest()


def _labels_digest(path: str) -> str:
    return hashlib.sha256(repr(read_labels(Path(path))).encode()).hexdigest()


def _artefact_digest(path: str) -> str:
    """Of a fitted predictor: its card names its tensors' digest."""
    try:
        return hashlib.sha256(read_file(Path(path) / CARD, MOST_CARD_BYTES)).hexdigest()
    except OSError as error:
        raise PlanError(f"predictor {path}: {error.strerror or error}; tracekit fit makes one") from None


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells in groups that may share decisions: those of one routing whose plans differ in weights alone.

    Whether they do share them depends on sizes and speeds, which `experiments.study.cell_results` looks at.
    """
    found: dict[tuple[Routing, bytes], list[Cell]] = {}
    for cell in cells:
        plan = cell.plan
        decided = msgspec.json.encode(_decided_by(plan), order="deterministic")
        found.setdefault((cell.routing, decided), []).append(cell)
    return list(found.values())


def _decided_by(plan: Plan) -> tuple[msgspec.Struct, ...]:
    """The tables of a plan that its decisions follow from."""
    return plan.cache, plan.placement, plan.eviction, plan.prefetch, plan.miss, plan.admission, plan.routing


def group_key(cells: Sequence[Cell]) -> str:
    """A name for a group of cells."""
    return hashlib.sha256("".join(sorted(cell.key for cell in cells)).encode()).hexdigest()[:32]
