"""CLOCK: first in, first out with a second chance."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.fifo import Fifo
from policies.eviction.lists import prev, push, remove, tail
from policies.fields import per_expert


class Clock(Fifo):
    """Passes over experts that were hit since the hand last came by, clearing their mark.

    What the visit demands is skipped: it keeps its mark, and the hand comes back to it.
    """

    name = "clock"
    summary = "first in, first out with a second chance for what was hit"
    source = "Corbato 1968, A Paging Experiment with the Multics System (MIT Project MAC)"

    marked = per_expert(np.uint8)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.marked[expert] = 1

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.marked[expert] = 0
        push(self.links, self.ends, group, expert)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        # The hand stands at the oldest end; passing over an expert moves it to the newest. After one round every mark
        # is gone, so the second finds a victim.
        for _ in range(2):
            expert = tail(self.ends, group)
            for _ in range(cache.resident_count[group]):
                following = prev(self.links, expert)
                if cache.seen[expert] != now:
                    if self.marked[expert] == 0:
                        return expert
                    self.marked[expert] = 0
                    remove(self.links, self.ends, group, expert)
                    push(self.links, self.ends, group, expert)
                expert = following
        return -1
