"""A study's file: what is to be compared, and the cells that follow from it.

traces = ["a.trace", "b.trace"]
objective = "tokens_per_second"        # or "p99", "bytes", "hit_ratio"
quality = "quality"                    # a measurement of quality (tracekit quality --output)
quality_loss = "0.5 %"                 # winners lose no more

[grid]                                 # every key: a value or a list of values; a table's lists multiply, too
capacity = ["2/layer", "4/layer"]      # or "auto": what each machine leaves
eviction = ["lru", "lfu", {policy = "lru-k", k = [2, 3]}]
prefetch = ["none", {predictor = "gate", count = [1, 2]}]
weights = "hqq-2bit"
hardware = ["rtx3060", "./mine.toml"]
model_shape = "mixtral-8x7b"
"""

import math
import os
from pathlib import Path
from typing import Literal

import msgspec

from engine.hardware import HardwareProfile
from engine.plan.capacity import Capacity
from engine.plan.plan import Plan
from engine.plan.tables import ServePlan
from engine.shapes import ModelShape, load_shape
from experiments.quality.measurement import Measurement, load_measurement, parse_loss
from experiments.statistics.comparison import LEAST_EFFECT
from experiments.study.fitting import is_auto
from experiments.study.grid import AXES, Tables, batches_of, check_names, choices, machines_of, place, plans_of, texts
from tracekit.errors import StudyError, TracekitError, did_you_mean
from tracekit.named_toml import convert, read_toml

MOST_CELLS = 1_000_000
Objective = Literal["tokens_per_second", "p99", "bytes", "hit_ratio"]
WITHOUT_TIME: tuple[Objective, ...] = ("bytes", "hit_ratio")
"""Objectives that need no machine."""


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`statistics`: how plans are compared (experiments.statistics.comparison)."""

    # how sure intervals and verdicts are to be
    level: float = 0.95
    # the smallest difference that matters, as a share (of hit ratios: in points): below it plans are level
    least_effect: float = LEAST_EFFECT

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise ValueError(f"statistics.level = {self.level}: give 0.5 or more, and less than 1")
        if not 0 <= self.least_effect < 1:
            raise ValueError(f"statistics.least_effect = {self.least_effect}: give 0 or more, and less than 1")


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
    quality: Measurement | None
    quality_loss: float | None
    reshape: str | None
    bounds: bool | None
    regret: int
    baseline: str
    across_capacities: bool
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
    # a measurement of quality (tracekit quality --output): results get a loss, and the report draws speed against it
    quality: str | None = None
    # "0.5 %": winners lose no more by that measurement; formats that were not measured cannot win; 0.005 is the same
    quality_loss: str | float | None = None
    # "sizes": a shape that routes otherwise than a trace sizes its experts; None: such cells fail
    reshape: Literal["sizes"] | None = None
    # Belady's bounds beside every cell; None: up to 20 M lookups
    bounds: bool | None = None
    # of how many of the best plans per trace and machine it is said what hinders them
    regret: int = 3
    # the eviction policy that all others are compared with at each capacity; None: the first of the grid
    baseline: str | None = None
    # what the device is kept free for, as in a plan; None: what the traces' own requests need
    serve: ServePlan | None = None
    # whether plans with caches of other sizes are rivals of the winner, too
    across_capacities: bool = False
    statistics: Statistics = Statistics()
    # most plans on a beginning of the traces only; None: all at full length
    search: Search | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.regret <= 1000:
            raise ValueError(f"regret = {self.regret}: give 0 to 1000")


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's file. Paths in it are relative to its folder. Raises StudyError or another TracekitError."""
    label = f"study {os.fspath(path)}"
    return study_from_dict(read_toml(path, "study", StudyError), label, Path(path).parent)


def study_from_dict(tables: Tables, label: str = "study", folder: Path = Path()) -> Study:
    """Validate the tables of a study's file. Raises TracekitError naming `label`, the key and the mend."""
    file = convert(dict(tables), _File, label=label, error=StudyError)
    for key in file.grid:
        if key == "reset":
            raise StudyError(f'{label}: grid.reset is now grid.warm: "reset" for "request", "keep" for "never"')
        if key == "cpu_experts":
            raise StudyError(f'{label}: grid.cpu_experts is gone: write grid.miss = ["copy", "auto"]')
        if key not in AXES:
            raise StudyError(f"{label}: grid has no key {key!r}{did_you_mean(key, AXES)}; it has {', '.join(AXES)}")
    if "capacity" not in file.grid:
        raise StudyError(f'{label}: grid.capacity says how many experts the device holds, such as "4/layer"')
    traces = [file.traces] if isinstance(file.traces, str) else file.traces
    if not traces:
        raise StudyError(f"{label}: traces is empty")
    count = len(traces) * math.prod(choices(label, axis, file.grid[axis]) for axis in file.grid)
    if count > MOST_CELLS:
        raise StudyError(f"{label}: the grid has {count} cells, more than {MOST_CELLS}: make two studies of it")
    try:
        machines = tuple(machines_of(label, file.grid, folder))
        shapes = tuple(load_shape(place(name, folder)) for name in texts(label, file.grid, "model_shape"))
        check_names("model_shape", shapes)
        baseline = None if file.baseline is None else place(file.baseline, folder)
        plans = tuple(plans_of(label, file.grid, folder, baseline, file.serve or ServePlan()))
        if not machines and any(is_auto(plan) for plan in plans):
            raise StudyError('capacity "auto" is what fits on a machine: give grid.hardware')
        limit = file.max_device_bytes
        if isinstance(limit, str):
            parsed = Capacity.parse(limit)
            if parsed.unit != "bytes" or parsed.per_layer:
                raise StudyError(f'max_device_bytes = {limit!r}: give bytes, such as "12GiB"')
            limit = int(parsed.amount)
        if limit is not None and limit < 1:
            raise StudyError(f'max_device_bytes = {limit}: give bytes, such as "12GiB"')
        quality = None if file.quality is None else load_measurement(place(file.quality, folder, always=True))
        most_loss = None if file.quality_loss is None else parse_loss(file.quality_loss)
        if most_loss is not None and quality is None:
            raise StudyError("quality_loss needs a measurement: quality = the folder of tracekit quality --output")
    except TracekitError as error:
        text = str(error)
        raise (error if text.startswith(label) else type(error)(f"{label}: {text}")) from None
    objective = file.objective or ("tokens_per_second" if machines else "bytes")
    if objective not in WITHOUT_TIME and not machines:
        choice = " or ".join(f'"{name}"' for name in WITHOUT_TIME)
        raise StudyError(
            f'{label}: objective = "{objective}" is about time: give grid.hardware, or objective = {choice}'
        )
    return Study(
        label=label,
        traces=tuple(dict.fromkeys(place(name, folder, always=True) for name in traces)),
        objective=objective,
        max_device_bytes=limit,
        quality=quality,
        quality_loss=most_loss,
        reshape=file.reshape,
        bounds=file.bounds,
        regret=file.regret,
        baseline=baseline or plans[0].eviction.policy,
        across_capacities=file.across_capacities,
        statistics=file.statistics,
        search=file.search,
        plans=plans,
        machines=machines or (None,),
        shapes=shapes or (None,),
        batches=batches_of(label, file.grid),
    )
