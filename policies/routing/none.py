"""The gate's own choice."""

from policies.routing.base import RoutingPolicy


class NoRouting(RoutingPolicy):
    """Alters nothing."""

    name = "none"
    summary = "the gate's own choice"
    looks = False
