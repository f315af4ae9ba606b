"""The plan: what to cache, what to prefetch, how weights are stored. The same file for simulator and engine."""

import os
from typing import Annotated, Any, Literal

import msgspec

from engine.plan.capacity import Capacity
from engine.plan.weights import WeightFormat
from tracekit.errors import PlanError
from tracekit.named_toml import convert, read_toml

Count = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class CachePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`cache`: how much device memory holds experts."""

    # "4/layer", "512", "2000MiB", "25%": see engine.plan.capacity
    capacity: str


class EvictionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`eviction`: a policy's name and, beside it, the policy's own parameters."""

    policy: str = "lru"
    # a trace whose most popular experts `static` keeps
    profile: str | None = None
    # a fitted predictor's directory (tracekit fit), for `learned`
    artefact: str | None = None
    parameters: dict[str, int | float | bool] = {}


class PrefetchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`prefetch`: a predictor's name, how it is used and, beside these, the predictor's own parameters."""

    predictor: str = "none"
    # MoE layers to look ahead
    distance: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    # how many suggested experts are considered per visit; those already on the device are not loaded again
    count: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 2
    # where a prefetched expert goes
    target: Literal["staging", "cache"] = "staging"
    # buffers outside the cache, for prefetches and overflow
    staging: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    # a fitted predictor's directory (tracekit fit), for `learned`
    artefact: str | None = None
    parameters: dict[str, int | float | bool] = {}


class WeightsPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`weights`: storage formats (engine.plan.weights); None keeps what the model has."""

    experts: str | None = None
    attention: str | None = None


class ComputePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`compute`: whether the CPU may compute a missing expert: `auto`, where that would end sooner than copying it."""

    cpu_experts: Literal["never", "auto"] = "never"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A validated plan. Every table but `cache` may be left out."""

    cache: CachePlan
    eviction: EvictionPlan = EvictionPlan()
    prefetch: PrefetchPlan = PrefetchPlan()
    weights: WeightsPlan = WeightsPlan()
    compute: ComputePlan = ComputePlan()

    @property
    def capacity(self) -> Capacity:
        """The parsed capacity."""
        return Capacity.parse(self.cache.capacity)

    def to_dict(self) -> dict[str, Any]:
        """The plan as the tables of its file; parameters stand beside the keys that every policy has."""
        tables: dict[str, Any] = {}
        for name in ("cache", "eviction", "prefetch", "weights", "compute"):
            table = {k: v for k, v in msgspec.to_builtins(getattr(self, name)).items() if v is not None}
            table.update(table.pop("parameters", {}))
            if table:
                tables[name] = table
        return tables

    def to_toml(self) -> str:
        """The plan as a TOML file; reading it back gives an equal plan."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())


def plan_from_dict(tables: dict[str, Any], label: str = "plan") -> Plan:
    """Validate the tables of a plan. Raises PlanError naming `label`, the key and the mend."""
    tables = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for name, kind in (("eviction", EvictionPlan), ("prefetch", PrefetchPlan)):
        table = tables.get(name)
        if isinstance(table, dict):
            own = set(kind.__struct_fields__) - {"parameters"}
            tables[name] = {key: table[key] for key in table if key in own}
            tables[name]["parameters"] = {key: table[key] for key in table if key not in own}
            for key, value in tables[name]["parameters"].items():
                if not isinstance(value, int | float):
                    raise PlanError(f"{label}: {name}.{key} = {value!r} is neither a key of {name} nor a number")
    strict = convert(tables, _StrictPlan, label=label, error=PlanError)
    plan = Plan(**{name: getattr(strict, name) for name in Plan.__struct_fields__})
    Capacity.parse(plan.cache.capacity)
    for text in (plan.weights.experts, plan.weights.attention):
        if text is not None:
            WeightFormat.parse(text)
    return plan


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan file. Raises PlanError."""
    return plan_from_dict(read_toml(path, "plan", PlanError), str(path))


class _StrictPlan(Plan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`Plan` as it stands in a file: unknown tables are errors."""
