"""Setting: one plan on one model, perhaps on a machine. Built once; whatever is computed of a plan asks it."""

from dataclasses import dataclass

import msgspec

from engine.decisions.misses import served
from engine.decisions.spec import cache_spec
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.replay.given_decisions import GivenDecisions
from engine.replay.passes import Target
from engine.replay.predictor_costs import with_predictors
from engine.shapes import ModelShape
from engine.shapes.load import ALONE, Load
from engine.simulator.copies import copies_bytes
from engine.simulator.costs import Costs, expert_params, model_costs
from policies.cache_spec import CacheSpec
from tracekit.errors import CapacityError, PlanError, did_you_mean
from tracekit.manifest import Manifest

RESHAPES = ("sizes",)
"""What a shape that routes otherwise than the trace may mean: "sizes", the routing is the trace's, and each expert of
it takes what one of the shape's takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A plan, the cache it means, the sizes of experts as it stores them, and what work costs on the machine.

    `sizes` are the bytes of an expert of each MoE layer, those of low copies (`plan.precision`) behind, none if nothing
    says; `costs` is None without a machine;
    `load` is what device memory holds beside weights.
    """

    manifest: Manifest
    plan: Plan
    machine: HardwareProfile | None
    shape: ModelShape | None
    spec: CacheSpec
    sizes: tuple[int, ...]
    costs: Costs | None
    stored: str | None = None
    reshape: str | None = None
    load: Load = ALONE

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        plan: Plan,
        machine: HardwareProfile | None = None,
        shape: ModelShape | None = None,
        *,
        stored: str | None = None,
        reshape: str | None = None,
        load: Load | None = None,
        given: GivenDecisions | None = None,
    ) -> "Setting":
        """What `plan` means for a trace's model, at the sizes of `shape` if that is given.

        `stored` is the format that the manifest's sizes are in already; `reshape` is one of RESHAPES; `load` is what
        device memory holds beside weights, one token if it is not given. Of decisions that are `given`, the plan says
        how they are carried out. Raises CapacityError where a capacity for all layers cannot be told, PlanError where
        trace and shape route otherwise and `reshape` does not say what that means, PolicyError, HardwareError.
        """
        if shape is not None:
            check_shape(manifest, shape, reshape)
        machine = None if machine is None else with_host(machine, plan)
        sizes = copies_bytes(manifest, shape, plan.formats)
        if given is None:
            # Of a plan with tiers, which copies what it misses, nothing is asked that depends on sizes.
            one = sizes[: len(manifest.experts_per_layer)]
            params, word = expert_params(manifest, shape, one), stored or plan.weights.experts
            misses = served(plan.miss, machine, one, params, word, grouped=plan.compute.grouped)
            spec = cache_spec(manifest.experts_per_layer, sizes, plan, misses)
        else:
            spec = given.spec_of(sizes)
        absolute = given is None and not plan.per_layer and plan.capacity.unit != "share"
        if shape is not None and absolute and len(shape.moe_layers) != spec.layers:
            raise CapacityError(
                f"capacity {plan.cache.capacity!r} is for all layers, but the trace has {spec.layers} MoE layers and "
                f"{shape.name} has {len(shape.moe_layers)}: give one per layer (4/layer, 250MiB/layer) or a share"
            )
        costs = None
        if machine is not None:
            costs = with_predictors(costs_without_predictors(manifest, plan, machine, shape, stored), plan, machine)
        return cls(manifest, plan, machine, shape, spec, tuple(sizes), costs, stored, reshape, load or ALONE)

    @property
    def target(self) -> Target:
        """What the plan's decisions are counted and timed as."""
        return Target(self.sizes, self.costs)

    @property
    def tier_sizes(self) -> list[tuple[int, ...]]:
        """`sizes` by tier, the high copies first."""
        layers = self.spec.layers
        return [self.sizes[first : first + layers] for first in range(0, len(self.sizes), layers)]

    @property
    def scale(self) -> float:
        """Turns what the trace's layers take into what the model's take."""
        return 1.0 if self.shape is None else len(self.shape.moe_layers) / len(self.manifest.experts_per_layer)


def costs_without_predictors(
    manifest: Manifest, plan: Plan, machine: HardwareProfile, shape: ModelShape | None, stored: str | None = None
) -> Costs:
    """The costs of a plan's work on a machine, but for those of its fitted predictors."""
    weights, compute = plan.weights, plan.compute
    return model_costs(
        manifest,
        machine,
        shape,
        weights.experts,
        weights.attention,
        plan.miss.where,
        stored=stored,
        compute_experts=compute.experts,
        grouped=compute.grouped,
        low=None if plan.precision is None else plan.precision.low,
    )


def with_host(machine: HardwareProfile, plan: Plan) -> HardwareProfile:
    """The machine with a disk, or without, as the plan's `serve.host` says. PlanError where its disk is not known."""
    if plan.serve.host == "memory":
        return msgspec.structs.replace(machine, disk=None)
    if plan.serve.host == "disk" and machine.disk is None:
        raise PlanError(
            f'serve.host = "disk", but {machine.name} has no [disk]: give its speed and what the host caches '
            "(--disk-speed 3GB/s --host-memory 32GiB), or a profile that says so"
        )
    return machine


def check_shape(manifest: Manifest, shape: ModelShape, reshape: str | None) -> None:
    """PlanError where a trace does not route as a model of that shape does, and nobody said what that means."""
    if reshape is not None and reshape not in RESHAPES:
        raise PlanError(f"reshape {reshape!r}{did_you_mean(reshape, RESHAPES)}: give {' or '.join(RESHAPES)}")
    own, other = (max(manifest.experts_per_layer), manifest.top_k), (shape.experts, shape.top_k)
    if own != other and reshape is None:
        raise PlanError(
            f"the trace routes top-{own[1]} of {own[0]} experts, {shape.name} top-{other[1]} of {other[0]}: what would "
            f"be replayed is no {shape.name}; --reshape sizes keeps the routing and gives each of its experts the size "
            f"that {shape.name}'s have"
        )
