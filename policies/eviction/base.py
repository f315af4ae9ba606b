"""The contract of an eviction policy."""

from typing import ClassVar

from policies.cache_state import CacheState
from policies.fields import Policy


class EvictionPolicy(Policy):
    """Decides which resident expert makes room. Override what the policy needs; every hook has a default.

    Experts are named by their key (see `policies.fields.Layout`), time is the number of the visit. Hooks are plain
    numeric Python over the declared arrays: they run interpreted, compiled, and in the engine. Helpers are functions
    of the same module. Most policies need only `rank`, and an `on_*` hook that keeps the number it ranks by.

    Within one visit the cache calls, in this order: `on_hit` or `on_miss` for every lookup; then for every expert to
    be kept `victim` and `on_evict` until there is room, and `on_insert`; then `on_reference` for every demanded expert
    that is now resident, in (token, slot) order of last reference. A prefetch into the cache is an `on_insert` without
    a lookup.

    `reads` declares what the `signal` of a lookup is: "nothing" (0.0) "gate-weight" (the gate weights that the visit's
    tokens gave the expert, added up), "predicted-use" (in how many steps the plan's fitted predictor expects the expert
    again, at least 1) or "next-use" (the visit at which the expert is demanded again, infinity if never: only bounds
    may read the future).
    """

    READABLE: ClassVar[tuple[str, ...]] = ("nothing", "gate-weight", "predicted-use", "next-use")
    reads: ClassVar[str] = "nothing"
    needs_profile: ClassVar[bool] = False  # the plan must name a trace whose popular experts fill the cache beforehand

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        """A lookup found the expert in the cache."""

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        """A lookup did not find the expert in the cache (it may wait in a staging buffer)."""

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        """The expert has been given a slot."""

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        """The visit used the expert: refresh recency."""

    def on_evict(self, expert: int, group: int, now: int) -> None:
        """The expert has lost its slot; or it is pinned from now on, named as a victim or not (policies.switching)."""

    def rank(self, expert: int, group: int, now: int) -> float:
        """How much a resident expert is worth keeping; the least goes first, ties by least recent reference."""
        return 0.0

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        """The resident expert to evict for `incoming`, or -1 if `incoming` should bypass the cache.

        The default asks `rank` of every resident of the group that this visit does not demand: O(residents).
        A policy that keeps an order of its own overrides it; `cache.seen[expert] == now` marks an expert that the
        visit demands and that must not be evicted. `signal` is that of the incoming expert's lookup.
        """
        best = -1
        best_rank = 0.0
        first = cache.first[group]
        for position in range(first, first + cache.resident_count[group]):
            expert = cache.resident[position]
            if cache.seen[expert] == now:
                continue
            rank = self.rank(expert, group, now)
            if best < 0 or rank < best_rank or (rank == best_rank and self.last_use[expert] < self.last_use[best]):
                best, best_rank = expert, rank
        return best
