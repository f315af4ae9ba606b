"""What a plan means for a model's MoE layers: the cache that its decisions are taken in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.plan.plan import Plan
from policies.cache import CacheSpec
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import PlanError
from tracekit.popularity import popularity


def cache_spec(experts_per_layer: Sequence[int], expert_bytes: Sequence[int], plan: Plan) -> CacheSpec:
    """What `plan` means for a model with these MoE layers. Raises CapacityError."""
    num_experts = max(experts_per_layer)
    capacity, size = plan.capacity.groups(experts_per_layer, num_experts, expert_bytes)
    pinned: tuple[int, ...] = ()
    if eviction_policy(plan.eviction.policy).needs_profile:
        if plan.eviction.profile is None:
            raise PlanError(f"eviction policy {plan.eviction.policy!r} needs eviction.profile = a trace (--profile)")
        counts = popularity(Path(plan.eviction.profile), list(experts_per_layer))
        pinned = most_popular(counts, experts_per_layer, capacity, size)
    elif plan.eviction.profile is not None:
        raise PlanError(f"eviction policy {plan.eviction.policy!r} reads no profile: remove eviction.profile")
    _check_artefacts(plan)
    return CacheSpec(
        pinned=pinned,
        predictor=plan.prefetch.artefact,
        estimator=plan.eviction.artefact,
        layers=len(experts_per_layer),
        experts=num_experts,
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
        reset=plan.cache.reset == "request",
        warm=plan.cache.warm,
        wrap=plan.prefetch.wrap,
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


def most_popular(
    counts: np.ndarray, experts_per_layer: Sequence[int], capacity: Sequence[int], size: np.ndarray
) -> tuple[int, ...]:
    """Keys of the experts of the most `counts` [layers, experts], as many as fit into each group; ties by key."""
    experts = max(experts_per_layer)
    order = np.argsort(-counts.ravel(), kind="stable")
    left = list(capacity)
    pinned = []
    for key in order.tolist():
        group = key // experts if len(left) > 1 else 0
        if key % experts < experts_per_layer[key // experts] and size[key] <= left[group]:
            left[group] -= int(size[key])
            pinned.append(key)
    return tuple(pinned)
