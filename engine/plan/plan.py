"""The plan: what to cache, what to prefetch, how weights are stored. The same file for simulator and engine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from engine.plan.capacity import Capacity
from engine.plan.carried import resolved
from engine.plan.layers import capacity_text
from engine.plan.misses import AdmissionPlan, MissPlan
from engine.plan.placement import parse_pinned
from engine.plan.tables import (
    KEEP,
    CachePlan,
    ComputePlan,
    EvictionPlan,
    PlacementPlan,
    PrecisionPlan,
    PrefetchPlan,
    RoutingPlan,
    Scalar,
    ServePlan,
    WeightsPlan,
)
from engine.plan.weights import WeightFormat
from tracekit.errors import PlanError
from tracekit.html_table import html_table
from tracekit.named_toml import convert, decode, read_toml


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A plan's file. Every table but `cache` may be left out."""

    cache: CachePlan
    placement: PlacementPlan = PlacementPlan()
    eviction: EvictionPlan = EvictionPlan()
    prefetch: PrefetchPlan = PrefetchPlan()
    routing: RoutingPlan = RoutingPlan()
    miss: MissPlan = MissPlan()
    admission: AdmissionPlan = AdmissionPlan()
    weights: WeightsPlan = WeightsPlan()
    precision: PrecisionPlan | None = None
    compute: ComputePlan = ComputePlan()
    serve: ServePlan = ServePlan()


class _Tables(TypedDict, total=False):
    """Some of a plan's tables."""

    cache: CachePlan
    placement: PlacementPlan
    eviction: EvictionPlan
    prefetch: PrefetchPlan
    routing: RoutingPlan
    miss: MissPlan
    admission: AdmissionPlan
    weights: WeightsPlan
    precision: PrecisionPlan | None
    compute: ComputePlan
    serve: ServePlan


_WITH_PARAMETERS = {
    **{"eviction": EvictionPlan, "prefetch": PrefetchPlan, "admission": AdmissionPlan},
    **{"routing": RoutingPlan, "precision": PrecisionPlan},
}
"""Tables in which a policy's own parameters stand beside the keys."""


@dataclass(frozen=True, init=False)
class Plan:
    """A validated plan: what to cache, what to prefetch, how weights are stored.

        Plan("4/layer", eviction="lru", prefetch={"predictor": "gate", "count": 2}, weights="hqq-2bit")

    The words are those of a study's grid: each a name, or a table of the plan's file as a mapping. Raises PlanError,
    and CapacityError for a capacity that cannot be read.
    """

    cache: CachePlan
    placement: PlacementPlan
    eviction: EvictionPlan
    prefetch: PrefetchPlan
    routing: RoutingPlan
    miss: MissPlan
    admission: AdmissionPlan
    weights: WeightsPlan
    precision: PrecisionPlan | None
    compute: ComputePlan
    serve: ServePlan

    def __init__(
        self,
        capacity: str | Sequence[str | Mapping[str, object]],
        *,
        eviction: str | Mapping[str, object] = "lru",
        prefetch: str | Mapping[str, object] = "none",
        weights: str | Mapping[str, object] | None = None,
        compute_experts: str = "each",
        serve: Mapping[str, object] | None = None,
        warm: str = KEEP,
        kernels: str | None = None,
        split: str | None = None,
        split_from: str | None = None,
        placement: str | Mapping[str, object] | None = None,
        routing: str | Mapping[str, object] = "none",
        miss: str | Mapping[str, object] = "copy",
        admission: str | Mapping[str, object] = "always",
        precision: Mapping[str, object] | None = None,
    ) -> None:
        given = capacity if isinstance(capacity, str) else list(capacity)
        tables = {
            "cache": {"capacity": given, "warm": warm, "split": split, "split_from": split_from},
            "placement": {"pinned": placement} if placement is None or isinstance(placement, str) else placement,
            "eviction": {"policy": eviction} if isinstance(eviction, str) else eviction,
            "prefetch": {"predictor": prefetch} if isinstance(prefetch, str) else prefetch,
            "routing": {"policy": routing} if isinstance(routing, str) else routing,
            "miss": {"where": miss} if isinstance(miss, str) else miss,
            "admission": {"policy": admission} if isinstance(admission, str) else admission,
            "weights": {"experts": weights} if weights is None or isinstance(weights, str) else weights,
            "compute": {"experts": compute_experts, "kernels": kernels},
            "serve": serve or {},
            **({} if precision is None else {"precision": precision}),
        }
        self.__dict__.update(plan_from_dict(tables).__dict__)

    @property
    def capacity(self) -> Capacity:
        """The parsed capacity."""
        return Capacity.parse(self.cache.capacity)

    @property
    def formats(self) -> tuple[str | None, ...]:
        """The formats of an expert's copies, the high one first; a plan without tiers has one."""
        return (self.weights.experts,) if self.precision is None else (self.weights.experts, self.precision.low)

    @property
    def exact(self) -> bool:
        """Whether the engine's output is that of its weights without offloading, whatever the cache holds."""
        return self.precision is None and not self.routing.alters

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a cache of its own."""
        return self.capacity.per_layer or self.cache.split is not None

    @property
    def alike(self) -> bool:
        """Whether the capacity is one number, of each layer or of all together, and all of it is the policy's."""
        return not self.capacity.exceptions and self.cache.split is None and self.placement.pinned is None

    @property
    def keeps_misses(self) -> bool:
        """Whether every miss is copied, and kept if there is room."""
        return self.miss.where == "copy" and not self.admission.limited

    def replace(self, **tables: Unpack[_Tables]) -> "Plan":
        """This plan with other tables."""
        plan = object.__new__(Plan)
        plan.__dict__.update(self.__dict__ | tables)
        return plan

    def to_dict(self) -> dict[str, dict[str, Scalar]]:
        """The plan as the tables of its file; parameters stand beside the keys that every policy has."""
        tables: dict[str, dict[str, Scalar]] = {}
        for name, struct in self.__dict__.items():
            if struct is None or (isinstance(struct, RoutingPlan) and not struct.alters):
                continue
            table = {key: value for key, value in msgspec.to_builtins(struct).items() if value is not None}
            table.update(table.pop("parameters", {}))
            if table:
                tables[name] = table
        return tables

    def to_toml(self) -> str:
        """The plan as a TOML file; reading it back gives an equal plan."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    def _repr_html_(self) -> str:
        rows = [(f"{name}.{key}", value) for name, table in self.to_dict().items() for key, value in table.items()]
        return html_table("Plan", rows)


def plan_from_dict(tables: Mapping[str, object], label: str = "plan") -> Plan:
    """Validate the tables of a plan. Raises PlanError naming `label`, the key and the mend."""
    given: dict[str, object] = dict(tables)
    _check_old_keys(given, label)
    for name, kind in _WITH_PARAMETERS.items():
        table = given.get(name)
        if isinstance(table, Mapping):
            own = set(kind.__struct_fields__) - {"parameters"}
            parameters = {key: table[key] for key in table if key not in own}
            for key, value in parameters.items():
                if not isinstance(value, int | float):
                    raise PlanError(f"{label}: {name}.{key} = {value!r} is neither a key of {name} nor a number")
            given[name] = {key: table[key] for key in table if key in own} | {"parameters": parameters}
    cache = given.get("cache")
    if isinstance(cache, Mapping) and "reset" in cache:
        if cache["reset"] != "never":  # which plans that were written by earlier releases all say
            raise PlanError(f'{label}: cache.reset is now cache.warm: "reset" for "request", "keep" for "never"')
        given["cache"] = cache = {key: value for key, value in cache.items() if key != "reset"}
    if isinstance(cache, Mapping) and isinstance(cache.get("capacity"), list):
        try:
            given["cache"] = {**cache, "capacity": capacity_text(cache["capacity"])}
        except PlanError as error:
            raise PlanError(f"{label}: cache.capacity: {error}") from None
    file = convert(given, _File, label=label, error=PlanError)
    _check_placing(file, label)
    if file.precision is not None:
        file = _with_tiers(file, file.precision, label)
    for text in (file.weights.experts, file.weights.attention):
        if text is not None:
            WeightFormat.parse(text)
    if file.serve.kv_cache is not None:
        WeightFormat.parse(file.serve.kv_cache).values_bytes(1)
    plan = object.__new__(Plan)
    plan.__dict__.update(msgspec.structs.asdict(file))
    return plan


def _check_old_keys(tables: Mapping[str, object], label: str) -> None:
    """Raise PlanError where a key is given that has another name now."""
    compute = tables.get("compute")
    if isinstance(compute, Mapping) and "cpu_experts" in compute:
        mend = 'write miss.where = "auto"' if compute["cpu_experts"] == "auto" else "leave it out"
        raise PlanError(f"{label}: compute.cpu_experts is gone: what a miss may be is miss.where now; {mend}")


def _check_placing(file: _File, label: str) -> None:
    """Raise PlanError, or CapacityError, where what says how slots are given out contradicts itself."""
    cache, placement, capacity = file.cache, file.placement, Capacity.parse(file.cache.capacity)
    if (cache.split == "curve") != (cache.split_from is not None):
        raise PlanError(f'{label}: cache.split = "curve" and cache.split_from, a trace, belong together: give both')
    if cache.split is not None and (capacity.exceptions or capacity.unit == "bytes"):
        raise PlanError(f"{label}: cache.split shares out slots: give cache.capacity as 6/layer, 512 or 25%")
    if placement.by is not None and placement.detect is not None:
        raise PlanError(f"{label}: placement.by and placement.detect tell a request's domain each: give one of them")
    if placement.labels is not None and placement.by is None:
        raise PlanError(f'{label}: placement.labels is for placement.by = "label": give both')
    popular = placement.pinned is not None and parse_pinned(placement.pinned).popular is not None
    if popular != (placement.profile is not None):
        raise PlanError(
            f'{label}: placement.pinned = "popular:..." and placement.profile, a trace or counts, belong together'
        )


def _with_tiers(file: _File, precision: PrecisionPlan, label: str) -> _File:
    """The file with the high format where all look for the experts' format. Raises PlanError, CapacityError."""
    high, named = precision.high, file.weights.experts
    if high is not None and named is not None and str(WeightFormat.parse(high)) != str(WeightFormat.parse(named)):
        raise PlanError(
            f"{label}: precision.high = {high!r} and weights.experts = {named!r} are two words for one thing: give one"
        )
    high = high if named is None else named
    if str(WeightFormat.parse(precision.low)) == (None if high is None else str(WeightFormat.parse(high))):
        raise PlanError(f"{label}: precision.low and precision.high are both {high!r}: give two formats, or no tiers")
    if file.miss.where != "copy" or file.admission.limited or file.placement.by or file.placement.detect:
        raise PlanError(
            f"{label}: with precision tiers every miss is copied and kept if there is room, and no placement changes "
            "with a domain: leave out miss, admission, placement.by and placement.detect, or precision"
        )
    own, low = Capacity.parse(file.cache.capacity), Capacity.parse(precision.capacity)
    if low.unit == "auto" or own.unit == "auto":
        raise PlanError(f"{label}: with precision tiers give both capacities: 'auto' cannot share out one memory")
    if low.exceptions or low.per_layer != (own.per_layer or file.cache.split is not None):
        raise PlanError(
            f"{label}: precision.capacity = {precision.capacity!r} is of each layer just if cache.capacity is, as in "
            "2/layer beside 4/layer"
        )
    return msgspec.structs.replace(
        file,
        weights=msgspec.structs.replace(file.weights, experts=high),
        precision=msgspec.structs.replace(precision, high=high),
    )


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file, and find the policies that lie beside it (`engine.plan.carried`). Raises PlanError."""
    return plan_from_dict(resolved(read_toml(path, "plan", PlanError), Path(path).parent, str(path)), str(path))


def plan_from_toml(text: str, label: str) -> Plan:
    """The plan in the text of a plan file. Raises PlanError, naming `label`."""
    return plan_from_dict(decode(text.encode(), label=label, error=PlanError), label)


PlanLike = Plan | Mapping[str, object] | str | os.PathLike[str]


def as_plan(plan: PlanLike) -> Plan:
    """The plan that a user gives: itself, the tables of its file, or the path of its file. Raises PlanError."""
    if isinstance(plan, Plan):
        return plan
    return plan_from_dict(plan) if isinstance(plan, Mapping) else load_plan(plan)
