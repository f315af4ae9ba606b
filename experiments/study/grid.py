"""A study's grid: the axes of its file, and the plans, machines and shapes that follow from them."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.decisions.routing_places import check_profile
from engine.hardware import EngineProfile, HardwareProfile, load_hardware
from engine.plan.layers import capacity_text
from engine.plan.plan import Plan, plan_from_dict
from engine.plan.tables import KEEP, RESET, PrefetchPlan, ServePlan
from engine.shapes import ModelShape
from policies.cache import allocated
from policies.fields import Layout
from policies.registry import admission_policy, eviction_policy, prefetcher, routing_policy, tier_rule
from tracekit.errors import StudyError, did_you_mean

Tables = Mapping[str, object]
"""Tables of a file, not yet validated."""
AXES = (
    *("capacity", "split", "split_from", "placement", "warm", "eviction", "prefetch", "miss", "admission", "routing"),
    *("weights", "precision", "compute_experts", "kernels", "hardware", "engine", "model_shape", "batch"),
)
TABLES = {
    **{"placement": "pinned", "eviction": "policy", "prefetch": "predictor", "weights": "experts"},
    **{"miss": "where", "admission": "policy", "routing": "policy", "precision": "low"},
}
"""Axes whose values are tables of a plan, and the key that a plain text stands for."""
NOTHING_SAID = ServePlan()
IDLE = ("distance", "wrap", "count", "target", "staging")
"""What is left out of a plan that prefetches nothing."""


def plan_name(plan: Plan, *, stored: bool = True) -> str:
    """What a plan does, in a few words: `lru, 4/layer + gate (distance 1, count 2), hqq-2bit`; the last if `stored`."""
    words = f"{eviction_name(plan)}, {plan.cache.capacity}" + placing_name(plan)
    if plan.cache.warm != KEEP:
        words += ", reset by request" if plan.cache.resets else f", warmed with {Path(plan.cache.warm).name}"
    if prefetch := prefetch_name(plan):
        words += f" + {prefetch}"
    if admission := admission_name(plan):
        words += f", {admission}"
    if routing := routing_name(plan):
        words += f", {routing}"
    words += stored_name(plan) if stored else ""
    if tiers := tiers_name(plan):
        words += f", {tiers}"
    return words + computed_name(plan) + (", experts on disk" if plan.serve.host == "disk" else "")


def placing_name(plan: Plan) -> str:
    """How the cache's slots are given out, as the end of a name: `, split by curve, popular:2/layer pinned`."""
    words = "" if plan.cache.split is None else f", split {plan.cache.split}"
    if plan.cache.split_from is not None:
        words += f" of {Path(plan.cache.split_from).name}"
    pinned = plan.placement.pinned
    words += "" if pinned is None else f", {Path(pinned).name if pinned.endswith('.toml') else pinned} pinned"
    by, detect = plan.placement.by, plan.placement.detect
    return words + ("" if by is None else f" by {by}") + ("" if detect is None else f" by {detect} tokens")


def stored_name(plan: Plan) -> str:
    """How weights are stored, as the end of a name: `, hqq-2bit (attention hqq-4bit)`; nothing where as they are."""
    words = "" if plan.weights.experts is None else f", {plan.weights.experts}"
    return words + ("" if plan.weights.attention is None else f" (attention {plan.weights.attention})")


def computed_name(plan: Plan) -> str:
    """How experts are computed, as the end of a name: `, fused, misses auto`; nothing where each on the device."""
    words = ", fused" if plan.compute.experts == "fused" else ", grouped" if plan.compute.grouped else ""
    return words + (f", {misses}" if (misses := misses_name(plan)) else "")


def misses_name(plan: Plan) -> str:
    """Where misses are computed: `misses auto`, `misses split (share 0.5)`; nothing where all are copied."""
    share = {} if plan.miss.share is None else {"share": f"{plan.miss.share:g}"}
    return "" if plan.miss.where == "copy" else f"misses {plan.miss.where}" + _brackets(share)


def admission_name(plan: Plan) -> str:
    """What the cache takes in: `admits second-miss (per_step 4)`; nothing where all that there is room for."""
    limits = {"per_step": plan.admission.per_step, "per_layer": plan.admission.per_layer}
    told = {key: value for key, value in limits.items() if value is not None} | plan.admission.parameters
    return f"admits {plan.admission.policy}" + _brackets(told) if plan.admission.limited else ""


def eviction_name(plan: Plan) -> str:
    """The eviction policy with its parameters: `lru-k (k 3)`."""
    return plan.eviction.policy + _brackets(_fitted(plan.eviction.artefact) | plan.eviction.parameters)


def prefetch_name(plan: Plan) -> str:
    """The prefetcher and how it is used: `gate (distance 1, count 2)`; nothing for none."""
    prefetch = plan.prefetch
    if prefetch.predictor == "none":
        return ""
    told: dict[str, object] = {"distance": prefetch.distance, "count": prefetch.count}
    if prefetch.wrap:
        told["wrap"] = "on"
    if prefetch.target != "staging":
        told["into"] = prefetch.target
    if prefetch.staging != PrefetchPlan().staging:
        told["staging"] = prefetch.staging
    return prefetch.predictor + _brackets(_fitted(prefetch.artefact) | told | prefetch.parameters)


def routing_name(plan: Plan) -> str:
    """The routing policy with its parameters, and how its results are known; nothing for the gates' own choices."""
    routing = plan.routing
    return f"{routing.policy}{_brackets(_fitted(routing.profile) | routing.parameters)}" if routing.alters else ""


def tiers_name(plan: Plan) -> str:
    """The low copies and the rule of which copy serves: `2/layer of hqq-2bit (rank, n 1)`; nothing for one format."""
    tiers = plan.precision
    if tiers is None:
        return ""
    rule = ", ".join([tiers.rule, *(f"{key} {value}" for key, value in tiers.parameters.items())])
    return f"{tiers.capacity} of {tiers.low} ({rule})"


def _fitted(artefact: str | None) -> dict[str, object]:
    return {} if artefact is None else {"of": Path(artefact).name}


def needs_future(plan: Plan) -> bool:
    """Whether the plan is a bound, which no machine can run."""
    return bool(eviction_policy(plan.eviction.policy).bound or prefetcher(plan.prefetch.predictor).bound)


def _brackets(values: Tables) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in values.items())})" if values else ""


def plans_of(
    label: str, grid: Tables, folder: Path, baseline: str | None = None, serve: ServePlan = NOTHING_SAID
) -> Iterator[Plan]:
    """Every plan of the grid, once, in the order of the file; the `baseline`'s policy first where it is not there.

    `serve` is what all of them serve.
    """
    capacities = _capacities(label, grid)
    evictions = list(_tables(label, grid, "eviction", folder)) or [{}]
    default = plan_from_dict({"cache": {"capacity": "1"}}).eviction.policy
    if baseline is not None and baseline not in [table.get("policy", default) for table in evictions]:
        evictions.insert(0, {"policy": baseline})
    prefetches = list(_tables(label, grid, "prefetch", folder)) or [{}]
    routings = list(_tables(label, grid, "routing", folder)) or [{}]
    weights = list(_tables(label, grid, "weights", folder)) or [{}]
    tiers = list(_tables(label, grid, "precision", folder)) or [{}]
    together = texts(label, grid, "compute_experts") or ["each"]
    kernels: list[str | None] = [*texts(label, grid, "kernels")] or [None]
    misses = list(_tables(label, grid, "miss", folder)) or [{}]
    admissions = list(_tables(label, grid, "admission", folder)) or [{}]
    splits = list(_splits(label, grid, folder))
    placements = list(_tables(label, grid, "placement", folder)) or [{}]
    given = texts(label, grid, "warm") or [KEEP]
    warmed = [name if name in (KEEP, RESET) else place(name, folder, always=True) for name in given]
    seen: set[bytes] = set()
    caches = itertools.product(capacities, splits, placements, warmed)
    others = itertools.product(evictions, prefetches, misses, admissions, routings, weights, tiers, together, kernels)
    for (capacity, split, placement, warm), (
        eviction,
        prefetch,
        miss,
        admission,
        routing,
        stored,
        low,
        experts,
        kernel,
    ) in itertools.product(caches, others):
        if prefetch.get("predictor", "none") == "none":
            prefetch = {key: value for key, value in prefetch.items() if key not in IDLE[:-1]}
        tables = {
            "cache": {"capacity": capacity, **split, "warm": warm},
            "placement": {} if placement.get("pinned") == "none" else placement,
            "eviction": eviction,
            "prefetch": prefetch,
            "miss": miss,
            "admission": admission,
            "routing": routing,
            "weights": stored,
            **({} if low.get("low", "none") == "none" else {"precision": low}),
            "compute": {"experts": experts, "kernels": kernel},
            "serve": msgspec.to_builtins(serve),
        }
        plan = plan_from_dict(tables, "grid")
        known = msgspec.json.encode(plan, order="deterministic")
        if known not in seen:
            seen.add(known)
            _check_policies(plan)
            yield plan


def choices(label: str, axis: str, given: object) -> int:
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


def machines_of(label: str, grid: Tables, folder: Path) -> Iterator[HardwareProfile]:
    """Every machine under every engine, each under its own where none is given."""
    machines, engines = ([place(name, folder) for name in texts(label, grid, axis)] for axis in ("hardware", "engine"))
    if engines and not machines:
        raise StudyError(f"{label}: grid.engine is about time: give grid.hardware")
    under: list[str | None] = [*engines] or [None]
    found = [[load_hardware(machine, engine) for engine in under] for machine in machines]
    check_names("hardware", [first for first, *_ in found])
    for of_machine in found:
        check_names("engine", [one.engine for one in of_machine])
        yield from of_machine


def check_names(axis: str, found: Sequence[HardwareProfile | EngineProfile | ModelShape]) -> None:
    """Results are told apart by these names."""
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"two of grid.{axis} are named {twice[0]!r}: give one another name in its file")


def _check_policies(plan: Plan) -> None:
    """All policies exist and have the parameters they are given."""
    smallest = Layout(1, 1, 1, 1, np.ones(1, np.int64), np.zeros(1, np.int64))
    allocated(eviction_policy(plan.eviction.policy), smallest, plan.eviction.parameters)
    allocated(prefetcher(plan.prefetch.predictor), smallest, plan.prefetch.parameters)
    allocated(admission_policy(plan.admission.policy), smallest, plan.admission.parameters)
    check_profile(plan.routing)
    if plan.routing.alters:
        allocated(routing_policy(plan.routing.policy), smallest, plan.routing.parameters)
    if plan.precision is not None:
        allocated(tier_rule(plan.precision.rule), smallest, plan.precision.parameters)


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
            for key in ("profile", "artefact", "labels", "policy", "predictor", "rule", "pinned"):
                if isinstance(name := table.get(key), str) and (key != "pinned" or name.endswith(".toml")):
                    table[key] = place(name, folder, always=key in ("profile", "artefact", "labels"))
            yield table


def _capacities(label: str, grid: Tables) -> list[str]:
    """The texts of `grid.capacity`, in which a list within the list is one capacity with layers by themselves."""
    given = [capacity_text(value) if isinstance(value, list) else value for value in _values(grid.get("capacity", []))]
    return texts(label, {"capacity": given}, "capacity")


def _splits(label: str, grid: Tables, folder: Path) -> Iterator[dict[str, str]]:
    """What each way of `grid.split` adds to a plan's `cache`: `none`, `even`, and `curve` with each trace of
    `grid.split_from`."""
    traces = [place(name, folder, always=True) for name in texts(label, grid, "split_from")]
    ways = texts(label, grid, "split")
    if ("curve" in ways) != bool(traces):
        raise StudyError(f'{label}: "curve" in grid.split and grid.split_from, a trace, belong together: give both')
    for way in ways or ["none"]:
        of_way = [{"split": way, "split_from": trace} for trace in traces] if way == "curve" else [{"split": way}]
        yield from of_way if way != "none" else [{}]


def texts(label: str, grid: Tables, axis: str) -> list[str]:
    found: dict[str, None] = {}
    for value in _values(grid.get(axis, [])):
        if not isinstance(value, str):
            raise StudyError(f"{label}: grid.{axis} holds {value!r}: give text, in quotes")
        found[value] = None
    return list(found)


def batches_of(label: str, grid: Tables) -> tuple[int | None, ...]:
    found: dict[int | None, None] = {}
    for value in _values(grid.get("batch", [])) or [None]:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise StudyError(f"{label}: grid.batch holds {value!r}: give whole numbers from 1")
        found[value] = None
    return tuple(found)


def _values(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def place(name: str, folder: Path, *, always: bool = False) -> str:
    """A path in the study's file, as seen from here; names of shipped things stay names."""
    if "\0" in name:
        raise StudyError(f"{name!r} is no path: it holds a null byte")
    is_path = always or "/" in name or name.endswith(".toml") or ".py:" in name
    return os.path.normpath(folder / name) if is_path else name
