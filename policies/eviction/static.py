"""A fixed set of experts: the most popular ones of a profiling trace."""

from typing import ClassVar

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy


class Static(EvictionPolicy):
    """Keeps the experts that the plan's profile demanded most, and lets all others bypass.

    The cache is full before the first visit: `CacheSpec.pinned` says with what. Hits are pinned hits.
    """

    name = "static"
    summary = "the most popular experts of a profiling trace, never evicted"
    source = "no one paper: experts placed once by popularity, as hand-written placements do"
    needs_profile: ClassVar[bool] = True

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        return -1
