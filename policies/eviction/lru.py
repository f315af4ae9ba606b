"""Least recently used: the policy of Eliseev & Mazur 2023 (arXiv 2312.17238), section 3.1."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.eviction.lists import head, last_idle, push, remove
from policies.fields import per_expert, per_group


class Lru(EvictionPolicy):
    """Evicts the expert whose last reference is oldest."""

    name = "lru"
    summary = "least recently used"
    source = "Eliseev & Mazur 2023, arXiv 2312.17238, section 3.1"

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=2)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        push(self.links, self.ends, group, expert)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        if head(self.ends, group) != expert:
            remove(self.links, self.ends, group, expert)
            push(self.links, self.ends, group, expert)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        remove(self.links, self.ends, group, expert)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        return last_idle(self.links, self.ends, group, cache.seen, now)
