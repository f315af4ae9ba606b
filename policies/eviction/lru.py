"""Least recently used: the policy of Eliseev & Mazur 2023 (arXiv 2312.17238), section 3.1."""

from typing import Any

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import per_expert, per_group


class Lru(EvictionPolicy):
    """Evicts the expert whose last reference is oldest; a doubly linked list, every operation O(1)."""

    name = "lru"
    summary = "least recently used"
    source = "Eliseev & Mazur 2023, arXiv 2312.17238, section 3.1"

    newer = per_expert(np.int32, -1)
    older = per_expert(np.int32, -1)
    newest = per_group(np.int32, -1)
    oldest = per_group(np.int32, -1)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        link(self, expert, group)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        if self.newest[group] != expert:
            unlink(self, expert, group)
            link(self, expert, group)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        unlink(self, expert, group)

    def victim(self, cache: Any, group: int, incoming: int, now: int) -> int:
        expert = self.oldest[group]
        while expert >= 0 and cache.seen[expert] == now:
            expert = self.newer[expert]
        return expert  # type: ignore[no-any-return]


def link(state: Any, expert: int, group: int) -> None:
    """Put `expert` at the newest end of its group's list."""
    newest = state.newest[group]
    state.newer[expert] = -1
    state.older[expert] = newest
    if newest >= 0:
        state.newer[newest] = expert
    else:
        state.oldest[group] = expert
    state.newest[group] = expert


def unlink(state: Any, expert: int, group: int) -> None:
    """Take `expert` out of its group's list."""
    newer, older = state.newer[expert], state.older[expert]
    if newer >= 0:
        state.older[newer] = older
    else:
        state.newest[group] = older
    if older >= 0:
        state.newer[older] = newer
    else:
        state.oldest[group] = newer
