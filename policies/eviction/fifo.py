"""First in, first out."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.eviction.lists import last_idle, push, remove
from policies.fields import per_expert, per_group


class Fifo(EvictionPolicy):
    """Evicts the expert that was loaded longest ago, however often it was used since."""

    name = "fifo"
    summary = "first in, first out"
    source = "Belady 1966, A study of replacement algorithms for a virtual-storage computer (FIFO)"

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=2)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        push(self.links, self.ends, group, expert)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        remove(self.links, self.ends, group, expert)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        return last_idle(self.links, self.ends, group, cache.seen, now)
