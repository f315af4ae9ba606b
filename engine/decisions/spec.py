"""What a plan means for a model's MoE layers: the cache that its decisions are taken in."""

from collections.abc import Sequence

from engine.decisions.domains import domains_of
from engine.decisions.misses import NO_MACHINE, Served
from engine.decisions.pinning import begins_with, filled, placed
from engine.decisions.splitting import groups_of
from engine.decisions.tier_spec import in_slots, low_copies
from engine.plan.plan import Plan
from policies.cache_spec import CacheSpec
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import PlanError


def cache_spec(
    experts_per_layer: Sequence[int], expert_bytes: Sequence[int], plan: Plan, misses: Served = NO_MACHINE
) -> CacheSpec:
    """What `plan` means for a model with these MoE layers. Raises CapacityError, PlanError.

    `expert_bytes` [layers] is empty where unknown; of a plan with precision tiers [2 * layers], the high copies first.
    `misses` is what the machine says about them, which some plans need (engine.decisions.misses).
    """
    pinned = placed(plan.placement, experts_per_layer)
    layers = len(experts_per_layer)
    capacity, size = groups_of(plan.cache, experts_per_layer, expert_bytes[:layers], pinned)
    domains = domains_of(plan.placement, plan.cache.warm_file, experts_per_layer)
    if domains is not None and eviction_policy(plan.eviction.policy).needs_profile:
        raise PlanError(f"eviction policy {plan.eviction.policy!r} never changes what it holds: without domains")
    if plan.precision is not None:
        capacity, size = in_slots(capacity, size)
    pinned = filled(plan.eviction, pinned, experts_per_layer, capacity, size)
    _check_artefacts(plan)
    return CacheSpec(
        pinned=pinned,
        predictor=plan.prefetch.artefact,
        estimator=plan.eviction.artefact,
        layers=layers,
        experts=max(experts_per_layer),
        capacity=capacity,
        size=size,
        eviction=plan.eviction.policy,
        eviction_parameters=plan.eviction.parameters,
        prefetch=plan.prefetch.predictor,
        prefetch_parameters=plan.prefetch.parameters,
        distance=plan.prefetch.distance,
        count=plan.prefetch.count,
        staging=plan.prefetch.staging,
        into_cache=plan.prefetch.target == "cache",
        reset=plan.cache.resets,
        warm=plan.cache.warm_trace,
        begins=begins_with(plan.cache.warm_file, experts_per_layer),
        wrap=plan.prefetch.wrap,
        domains=domains,
        where=plan.miss.where,
        copied=misses.copied,
        most_tokens=misses.most_tokens,
        admission=plan.admission.policy,
        admission_parameters=plan.admission.parameters,
        per_step=plan.admission.per_step,
        even=plan.admission.per_layer == "even",
        low=None if plan.precision is None else low_copies(plan.precision, experts_per_layer, expert_bytes[layers:]),
    )


def _check_artefacts(plan: Plan) -> None:
    """Raise PlanError unless just the policies that read a fitted predictor have one."""
    for kind, name, reads, artefact in (
        ("eviction", plan.eviction.policy, eviction_policy(plan.eviction.policy).reads, plan.eviction.artefact),
        ("prefetch", plan.prefetch.predictor, prefetcher(plan.prefetch.predictor).reads, plan.prefetch.artefact),
    ):
        if reads.startswith("predicted") and artefact is None:
            raise PlanError(
                f"{kind} policy {name!r} needs {kind}.artefact = a fitted predictor's directory (--{kind}-artefact); "
                "tracekit fit makes one"
            )
        if artefact is not None and not reads.startswith("predicted"):
            raise PlanError(f"{kind} policy {name!r} reads no fitted predictor: remove {kind}.artefact")
