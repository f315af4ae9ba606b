"""ARC: balances recency against frequency by what its ghosts say it should have kept."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.eviction.lists import head, last_idle, push, remove, tail
from policies.fields import per_expert, per_group

NOWHERE, ONCE, OFTEN, GHOST_ONCE, GHOST_OFTEN = 0, 1, 2, 3, 4


class Arc(EvictionPolicy):
    """Experts seen once and experts seen again, each with a ghost list of those evicted from it.

    A miss that a ghost remembers moves the target size of the first list towards that ghost, by the ratio of the
    ghosts' lengths as a real number. Sizes are counted in experts, so byte capacities are taken as if all experts had
    the size of the incoming one. If the visit demands all of the list that should give room, the other list gives;
    a bypass changes nothing.
    """

    name = "arc"
    summary = "adaptive replacement: recency against frequency, tuned by ghosts"
    source = "Megiddo & Modha 2003, ARC: A Self-Tuning, Low Overhead Replacement Cache (FAST), figure 4"

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=10)
    where = per_expert(np.uint8)
    count = per_group(np.int64, width=5)
    target = per_group(np.float64)
    adapted = per_expert(np.int64, -1)
    forget = per_group(np.uint8)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        at = 5 * group + self.where[expert]
        if head(self.ends, at) != expert:
            remove(self.links, self.ends, at, expert)
            push(self.links, self.ends, at, expert)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        # Its place in the second list is given by on_reference; until then the visit protects it.
        if self.where[expert] == ONCE:
            move(self, expert, group, OFTEN)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        known = self.where[expert] == GHOST_ONCE or self.where[expert] == GHOST_OFTEN
        move(self, expert, group, OFTEN if known else ONCE)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        if self.forget[group]:
            self.forget[group] = 0
            move(self, expert, group, NOWHERE)
        else:
            move(self, expert, group, GHOST_ONCE if self.where[expert] == ONCE else GHOST_OFTEN)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        at = 5 * group
        idle_once = last_idle(self.links, self.ends, at + ONCE, cache.seen, now)
        idle_often = last_idle(self.links, self.ends, at + OFTEN, cache.seen, now)
        if idle_once < 0 and idle_often < 0:
            return -1
        capacity = max(1, cache.capacity[group] // self.size[incoming])
        if self.adapted[incoming] != now:
            self.adapted[incoming] = now
            once, often = self.count[at + GHOST_ONCE], self.count[at + GHOST_OFTEN]
            if self.where[incoming] == GHOST_ONCE:
                self.target[group] = min(float(capacity), self.target[group] + max(1.0, often / max(once, 1)))
            elif self.where[incoming] == GHOST_OFTEN:
                self.target[group] = max(0.0, self.target[group] - max(1.0, once / max(often, 1)))
            else:
                trim_ghosts(self, group, capacity)
        resident_once = self.count[at + ONCE]
        known = self.where[incoming] == GHOST_ONCE or self.where[incoming] == GHOST_OFTEN
        if not known and resident_once >= capacity and idle_once >= 0:
            # The first list alone fills the cache: its ghost is to stay empty.
            self.forget[group] = 1
            return idle_once
        take_once = resident_once > 0 and (
            resident_once > self.target[group]
            or (self.where[incoming] == GHOST_OFTEN and resident_once == self.target[group])
        )
        if idle_once < 0 or idle_often < 0:
            return max(idle_once, idle_often)
        return idle_once if take_once else idle_often


def trim_ghosts(state: "Arc", group: int, capacity: int) -> None:
    """Forget the oldest ghosts, so that a list and its ghost, or else all four together, keep to their limits."""
    at = 5 * group
    if state.count[at + ONCE] + state.count[at + GHOST_ONCE] < capacity:
        while state.count[at + GHOST_OFTEN] > 0 and total(state, at) >= 2 * capacity:
            move(state, tail(state.ends, at + GHOST_OFTEN), group, NOWHERE)
        return
    while state.count[at + GHOST_ONCE] > 0 and state.count[at + ONCE] + state.count[at + GHOST_ONCE] >= capacity:
        move(state, tail(state.ends, at + GHOST_ONCE), group, NOWHERE)


def total(state: "Arc", at: int) -> int:
    """Experts in all four lists."""
    return (
        state.count[at + ONCE] + state.count[at + OFTEN] + state.count[at + GHOST_ONCE] + state.count[at + GHOST_OFTEN]
    )


def move(state: "Arc", expert: int, group: int, to: int) -> None:
    """Take an expert out of the list it is in, and put it at the newest end of another."""
    here = state.where[expert]
    if here != NOWHERE:
        remove(state.links, state.ends, 5 * group + here, expert)
        state.count[5 * group + here] -= 1
    state.where[expert] = to
    if to != NOWHERE:
        push(state.links, state.ends, 5 * group + to, expert)
        state.count[5 * group + to] += 1
