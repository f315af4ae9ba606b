"""A study's file: what is to be compared, and the cells that follow from it.

traces = ["a.trace", "b.trace"]
objective = "tokens_per_second"        # or "p99", "bytes"

[grid]                                 # every key: a value or a list of values; a table's lists multiply, too
capacity = ["2/layer", "4/layer"]
eviction = ["lru", "lfu", {policy = "lru-k", k = [2, 3]}]
prefetch = ["none", {predictor = "gate", count = [1, 2]}]
weights = "hqq-2bit"
hardware = ["rtx3060", "./mine.toml"]
model_shape = "mixtral-8x7b"
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from engine.hardware import EngineProfile, HardwareProfile, load_hardware
from engine.plan.capacity import Capacity
from engine.plan.plan import Plan, PrefetchPlan, plan_from_dict
from engine.shapes import ModelShape, load_shape
from policies.cache import allocated
from policies.fields import Layout
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import StudyError, TracekitError, did_you_mean
from tracekit.named_toml import convert, read_toml

MOST_CELLS = 1_000_000
Tables = Mapping[str, object]
"""Tables of a file, not yet validated."""
Objective = Literal["tokens_per_second", "p99", "bytes"]


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`statistics`: how plans are compared (experiments.statistics.comparison)."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise ValueError(f"statistics.level = {self.level}: give 0.5 or more, and less than 1")
        if not 100 <= self.resamples <= 1_000_000:
            raise ValueError(f"statistics.resamples = {self.resamples}: give 100 to 1000000")
        if self.seed < 0:
            raise ValueError(f"statistics.seed = {self.seed}: give 0 or more")


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`search`: successive halving: most plans are replayed on a beginning of each trace only (`.search`)."""

    # how many rounds on ever longer beginnings come before the full length
    rounds: int = 2
    # the share of plans that goes on after each round; a beginning is this share of the next round's
    keep: float = 0.25
    # in each setting so many plans go on at least
    least: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 8:
            raise ValueError(f"search.rounds = {self.rounds}: give 1 to 8")
        if not 0.01 <= self.keep <= 0.9:
            raise ValueError(f"search.keep = {self.keep}: give 0.01 to 0.9")
        if not 1 <= self.least <= MOST_CELLS:
            raise ValueError(f"search.least = {self.least}: give 1 or more")


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A study's file, validated. `grid` holds the axes as lists of values."""

    label: str
    traces: tuple[str, ...]
    objective: Objective
    max_device_bytes: int | None
    reshape: str | None
    bounds: bool | None
    regret: int
    baseline: str | None
    statistics: Statistics
    search: Search | None
    plans: tuple[Plan, ...]
    machines: tuple[HardwareProfile | None, ...]
    shapes: tuple[ModelShape | None, ...]
    batches: tuple[int | None, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A study as it stands in its file."""

    traces: str | list[str]
    grid: dict[str, object]
    objective: Objective | None = None
    # "12GiB": winners take no more of the device; bytes are numbers too
    max_device_bytes: str | int | None = None
    # "sizes": a shape that routes otherwise than a trace sizes its experts; None: such cells fail
    reshape: Literal["sizes"] | None = None
    # Belady's bounds beside every cell; None: up to 20 M lookups
    bounds: bool | None = None
    # of how many of the best plans per trace and machine it is said what hinders them
    regret: int = 3
    # the eviction policy that the winner is also compared with; None: the first of the grid
    baseline: str | None = None
    statistics: Statistics = Statistics()
    # most plans on a beginning of the traces only; None: all at full length
    search: Search | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.regret <= 1000:
            raise ValueError(f"regret = {self.regret}: give 0 to 1000")


AXES = (
    *("capacity", "eviction", "prefetch", "weights", "compute_experts", "cpu_experts"),
    *("hardware", "engine", "model_shape", "batch"),
)
TABLES = {"eviction": "policy", "prefetch": "predictor", "weights": "experts"}
"""Axes whose values are tables of a plan, and the key that a plain text stands for."""
IDLE = ("distance", "count", "target", "staging")
"""What is left out of a plan that prefetches nothing."""


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's file. Paths in it are relative to its folder. Raises StudyError or another TracekitError."""
    label = f"study {os.fspath(path)}"
    return study_from_dict(read_toml(path, "study", StudyError), label, Path(path).parent)


def study_from_dict(tables: Tables, label: str = "study", folder: Path = Path()) -> Study:
    """Validate the tables of a study's file. Raises TracekitError naming `label`, the key and the mend."""
    file = convert(dict(tables), _File, label=label, error=StudyError)
    for key in file.grid:
        if key not in AXES:
            raise StudyError(f"{label}: grid has no key {key!r}{did_you_mean(key, AXES)}; it has {', '.join(AXES)}")
    if "capacity" not in file.grid:
        raise StudyError(f'{label}: grid.capacity says how many experts the device holds, such as "4/layer"')
    traces = [file.traces] if isinstance(file.traces, str) else file.traces
    if not traces:
        raise StudyError(f"{label}: traces is empty")
    count = len(traces) * math.prod(_choices(label, axis, file.grid[axis]) for axis in file.grid)
    if count > MOST_CELLS:
        raise StudyError(f"{label}: the grid has {count} cells, more than {MOST_CELLS}: make two studies of it")
    try:
        machines = tuple(_machines(label, file.grid, folder))
        shapes = tuple(load_shape(_place(name, folder)) for name in _texts(label, file.grid, "model_shape"))
        _check_names("model_shape", shapes)
        plans = tuple(_plans(label, file.grid, folder))
        limit = file.max_device_bytes
        if isinstance(limit, str):
            parsed = Capacity.parse(limit)
            if parsed.unit != "bytes" or parsed.per_layer:
                raise StudyError(f'max_device_bytes = {limit!r}: give bytes, such as "12GiB"')
            limit = int(parsed.amount)
        if limit is not None and limit < 1:
            raise StudyError(f'max_device_bytes = {limit}: give bytes, such as "12GiB"')
        baseline = None if file.baseline is None else _place(file.baseline, folder)
        if baseline is not None:
            eviction_policy(baseline)
            named = [plan.eviction.policy for plan in plans]
            if baseline not in named:
                raise StudyError(f"baseline {baseline!r} is not in grid.eviction{did_you_mean(baseline, named)}")
    except TracekitError as error:
        text = str(error)
        raise (error if text.startswith(label) else type(error)(f"{label}: {text}")) from None
    objective = file.objective or ("tokens_per_second" if machines else "bytes")
    if objective != "bytes" and not machines:
        raise StudyError(f'{label}: objective = "{objective}" is about time: give grid.hardware')
    return Study(
        label=label,
        traces=tuple(dict.fromkeys(_place(name, folder, always=True) for name in traces)),
        objective=objective,
        max_device_bytes=limit,
        reshape=file.reshape,
        bounds=file.bounds,
        regret=file.regret,
        baseline=baseline,
        statistics=file.statistics,
        search=file.search,
        plans=plans,
        machines=machines or (None,),
        shapes=shapes or (None,),
        batches=_batches(label, file.grid),
    )


def plan_name(plan: Plan, *, stored: bool = True) -> str:
    """What a plan does, in a few words: `lru, 4/layer + gate (distance 1, count 2), hqq-2bit`; the last if `stored`."""
    words = f"{eviction_name(plan)}, {plan.cache.capacity}"
    if prefetch := prefetch_name(plan):
        words += f" + {prefetch}"
    return words + (stored_name(plan) if stored else "") + computed_name(plan)


def stored_name(plan: Plan) -> str:
    """How weights are stored, as the end of a name: `, hqq-2bit (attention hqq-4bit)`; nothing where as they are."""
    words = "" if plan.weights.experts is None else f", {plan.weights.experts}"
    return words + ("" if plan.weights.attention is None else f" (attention {plan.weights.attention})")


def computed_name(plan: Plan) -> str:
    """How experts are computed, as the end of a name: `, fused, CPU computes`; nothing where each on the device."""
    words = ", fused" if plan.compute.experts == "fused" else ""
    return words + (", CPU computes" if plan.compute.cpu_experts == "auto" else "")


def eviction_name(plan: Plan) -> str:
    """The eviction policy with its parameters: `lru-k (k 3)`."""
    return plan.eviction.policy + _brackets(_fitted(plan.eviction.artefact) | plan.eviction.parameters)


def prefetch_name(plan: Plan) -> str:
    """The prefetcher and how it is used: `gate (distance 1, count 2)`; nothing for none."""
    prefetch = plan.prefetch
    if prefetch.predictor == "none":
        return ""
    told: dict[str, object] = {"distance": prefetch.distance, "count": prefetch.count}
    if prefetch.target != "staging":
        told["into"] = prefetch.target
    if prefetch.staging != PrefetchPlan().staging:
        told["staging"] = prefetch.staging
    return prefetch.predictor + _brackets(_fitted(prefetch.artefact) | told | prefetch.parameters)


def _fitted(artefact: str | None) -> dict[str, object]:
    return {} if artefact is None else {"of": Path(artefact).name}


def needs_future(plan: Plan) -> bool:
    """Whether the plan is a bound, which no machine can run."""
    return bool(eviction_policy(plan.eviction.policy).bound or prefetcher(plan.prefetch.predictor).bound)


def _brackets(values: Tables) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""


def _plans(label: str, grid: Tables, folder: Path) -> Iterator[Plan]:
    """Every plan of the grid, once, in the order of the file."""
    capacities = _texts(label, grid, "capacity")
    evictions = list(_tables(label, grid, "eviction", folder)) or [{}]
    prefetches = list(_tables(label, grid, "prefetch", folder)) or [{}]
    weights = list(_tables(label, grid, "weights", folder)) or [{}]
    kernels = _texts(label, grid, "compute_experts") or ["each"]
    lanes = _texts(label, grid, "cpu_experts") or ["never"]
    seen: set[bytes] = set()
    for capacity, eviction, prefetch, stored, kernel, lane in itertools.product(
        capacities, evictions, prefetches, weights, kernels, lanes
    ):
        if prefetch.get("predictor", "none") == "none":
            prefetch = {key: value for key, value in prefetch.items() if key not in IDLE[:-1]}
        tables = {
            "cache": {"capacity": capacity},
            "eviction": eviction,
            "prefetch": prefetch,
            "weights": stored,
            "compute": {"experts": kernel, "cpu_experts": lane},
        }
        plan = plan_from_dict(tables, "grid")
        known = msgspec.json.encode(plan, order="deterministic")
        if known not in seen:
            seen.add(known)
            _check_policies(plan)
            yield plan


def _choices(label: str, axis: str, given: object) -> int:
    """How many values an axis has, before any is made. An empty list would leave out what it is meant to vary."""
    if given == []:
        raise StudyError(f"{label}: grid.{axis} is empty")
    count = 0
    for value in _values(given):
        table = value if isinstance(value, dict) else {}
        if empty := [key for key, item in table.items() if item == []]:
            raise StudyError(f"{label}: grid.{axis}: {empty[0]} is empty")
        count += math.prod(len(_values(item)) for item in table.values())
    return count


def _machines(label: str, grid: Tables, folder: Path) -> Iterator[HardwareProfile]:
    """Every machine under every engine, each under its own where none is given."""
    machines, engines = (
        [_place(name, folder) for name in _texts(label, grid, axis)] for axis in ("hardware", "engine")
    )
    if engines and not machines:
        raise StudyError(f"{label}: grid.engine is about time: give grid.hardware")
    under: list[str | None] = [*engines] or [None]
    found = [[load_hardware(machine, engine) for engine in under] for machine in machines]
    _check_names("hardware", [first for first, *_ in found])
    for of_machine in found:
        _check_names("engine", [one.engine for one in of_machine])
        yield from of_machine


def _check_names(axis: str, found: Sequence[HardwareProfile | EngineProfile | ModelShape]) -> None:
    """Results are told apart by these names."""
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"two of grid.{axis} are named {twice[0]!r}: give one another name in its file")


def _check_policies(plan: Plan) -> None:
    """Both policies exist and have the parameters they are given."""
    smallest = Layout(1, 1, 1, 1, np.ones(1, np.int64), np.zeros(1, np.int64))
    allocated(eviction_policy(plan.eviction.policy), smallest, plan.eviction.parameters)
    allocated(prefetcher(plan.prefetch.predictor), smallest, plan.prefetch.parameters)


def _tables(label: str, grid: Tables, axis: str, folder: Path) -> Iterator[dict[str, object]]:
    """Every table that an axis stands for: a plain text is its first key, lists in a table multiply."""
    for value in _values(grid.get(axis, [])):
        if isinstance(value, str):
            value = {TABLES[axis]: value}
        if not isinstance(value, dict):
            raise StudyError(f"{label}: grid.{axis} holds {value!r}: give a name or a table")
        if axis != "weights" and TABLES[axis] not in value:
            guess = did_you_mean(TABLES[axis], value)
            raise StudyError(f"{label}: a table of grid.{axis} lacks {TABLES[axis]}{guess}")
        choices = [_values(item) for item in value.values()]
        for chosen in itertools.product(*choices):
            table = dict(zip(value, chosen, strict=True))
            for key in ("profile", "artefact", "policy", "predictor"):
                if isinstance(name := table.get(key), str):
                    table[key] = _place(name, folder, always=key in ("profile", "artefact"))
            yield table


def _texts(label: str, grid: Tables, axis: str) -> list[str]:
    found: dict[str, None] = {}
    for value in _values(grid.get(axis, [])):
        if not isinstance(value, str):
            raise StudyError(f"{label}: grid.{axis} holds {value!r}: give text, in quotes")
        found[value] = None
    return list(found)


def _batches(label: str, grid: Tables) -> tuple[int | None, ...]:
    found: dict[int | None, None] = {}
    for value in _values(grid.get("batch", [])) or [None]:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise StudyError(f"{label}: grid.batch holds {value!r}: give whole numbers from 1")
        found[value] = None
    return tuple(found)


def _values(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _place(name: str, folder: Path, *, always: bool = False) -> str:
    """A path in the study's file, as seen from here; names of shipped things stay names."""
    if "\0" in name:
        raise StudyError(f"{name!r} is no path: it holds a null byte")
    is_path = always or "/" in name or name.endswith(".toml") or ".py:" in name
    return os.path.normpath(folder / name) if is_path else name
