"""What a routing policy is told of a profile: each expert's place in its layer by what tokens gave it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.decisions.tier_spec import popular_places
from engine.plan.tables import RoutingPlan
from policies.registry import routing_policy
from tracekit.errors import PlanError
from tracekit.popularity import popularity


def routing_places(plan: RoutingPlan, experts_per_layer: Sequence[int]) -> np.ndarray | None:
    """By soft counts, ties by id: i64 [layers * experts], 0 weighed most; None for a policy that needs no profile.

    Raises PlanError for a profile that is missing, needless or of another model; PolicyError, TraceError,
    ImportFormatError.
    """
    check_profile(plan)
    if plan.profile is None:
        return None
    return popular_places(popularity(Path(plan.profile), list(experts_per_layer), soft=True))


def check_profile(plan: RoutingPlan) -> None:
    """Raise PlanError unless just a policy that needs a profile has one, PolicyError."""
    needs = routing_policy(plan.policy).needs_profile
    if needs and plan.profile is None:
        raise PlanError(
            f"routing policy {plan.policy!r} needs routing.profile = a trace, or counts of one (--routing-profile)"
        )
    if not needs and plan.profile is not None:
        raise PlanError(f"routing policy {plan.policy!r} reads no profile: remove routing.profile")
