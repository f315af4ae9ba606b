"""The seam between `ReferenceCache` and the policies it consults.

A policy hears of hits, misses, insertions, references and evictions, and picks a victim among candidates. Where the
papers leave open what a cache of experts does, each class says so: a visit may demand several experts at once, never
evicts those, and lets bypass what finds no room; a bypass changes no list.
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tests.helpers.reference_cache import ReferenceCache


class Reference:
    """Least recently used, and the hooks that the others override.

    `now` is the number of the visit; `candidates` are the evictable residents of the incoming expert's group, least
    recently used first.
    """

    may_evict_demanded: ClassVar[bool] = False

    def __init__(self, cache: "ReferenceCache") -> None:
        self.cache = cache

    def hit(self, key: int, now: int) -> None:
        """A lookup found the key resident."""

    def miss(self, key: int, now: int) -> None:
        """A lookup did not find the key resident."""

    def insert(self, key: int, now: int) -> None:
        """The key became resident."""

    def reference(self, key: int, now: int) -> None:
        """The visit used the key, which is resident now. Called in order of last reference."""

    def evict(self, key: int, now: int) -> None:
        """The key is no longer resident."""

    def rank(self, key: int, now: int) -> float:
        """What is worth least goes first; ties: least recently used."""
        return 0.0

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        """The candidate that makes room, or None to stream `incoming`. min() takes the first of equals."""
        return min(candidates, key=lambda key: self.rank(key, now))
