"""What of a plan alters what a model says: plans of one key lose alike, whatever else differs."""

import msgspec

from engine.plan.plan import Plan
from policies.registry import routing_policy

ALTERING = ("weights", "routing", "precision")
"""Tables of a plan that alter what a model says."""
DECIDING = ("cache", "placement", "eviction", "prefetch", "miss", "admission")
"""Tables that decide what is there, and so what a policy makes of the gates' choices that looks at it."""


def quality_key(plan: Plan) -> str:
    """Everything of a plan that alters the model's output, as text: plans whose texts are equal lose the same.

    Formats, precision tiers, the routing policy and its parameters; with tiers, or a policy that looks at what is
    there, also all that decides that. The machine, and how experts are computed, alter nothing. A policy of one's own
    counts by the name of its file. Raises PolicyError for a routing policy that there is not.
    """
    tables = plan.to_dict()
    names = (*ALTERING, *(DECIDING if looks_at_cache(plan) else ()))
    return msgspec.json.encode({name: tables[name] for name in names if name in tables}, order="sorted").decode()


def looks_at_cache(plan: Plan) -> bool:
    """Whether what a plan computes depends on what is there. Raises PolicyError."""
    return plan.precision is not None or (plan.routing.alters and routing_policy(plan.routing.policy).looks)


def is_stored_only(plan: Plan) -> bool:
    """Whether a plan alters what a model says by how weights are stored, and by nothing else."""
    return not plan.routing.alters and plan.precision is None
