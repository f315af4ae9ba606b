"""Eviction by rank in a heap, for policies whose ranks do not change with time."""

import numpy as np

from policies.cache_state import CacheState, as_key
from policies.eviction.base import EvictionPolicy
from policies.fields import per_expert, per_group


class Ordered(EvictionPolicy):
    """Evicts the least `rank`, ties by least recent reference, as inherited; but finds it without asking all.

    For a policy whose `rank` of a resident changes in its own hooks alone, never by `now`. Hooks that change one call
    `settle` after it; `on_insert`, `on_reference` and `on_evict`, where overridden, end with `enter`, `settle` and
    `leave`. Residents of a group are a binary heap (Williams 1964): each of these takes O(log residents).
    """

    heap = per_expert(np.int32, -1)  # the group's residents from group * experts on
    at = per_expert(np.int32, -1)  # place in the group's heap
    held = per_group(np.int64)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        enter(self, expert, group, now)

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        settle(self, expert, group, now)

    def on_evict(self, expert: int, group: int, now: int) -> None:
        leave(self, expert, group, now)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        return first_idle(self, cache.seen, group, now)


def enter(state: "Ordered", expert: int, group: int, now: int) -> None:
    """The expert is resident now."""
    state.at[expert] = state.held[group]
    state.held[group] += 1
    settle(state, expert, group, now)


def leave(state: "Ordered", expert: int, group: int, now: int) -> None:
    """The expert is not resident any more."""
    state.held[group] -= 1
    moved = as_key(state.heap[group * state.experts + state.held[group]])
    if moved != expert:
        state.at[moved] = state.at[expert]
        settle(state, moved, group, now)


def settle(state: "Ordered", expert: int, group: int, now: int) -> None:
    """The resident's rank, or its last use, has changed: move it to where it belongs."""
    first, held = group * state.experts, state.held[group]
    place = state.at[expert]
    while place > 0:
        above = (place - 1) // 2
        other = as_key(state.heap[first + above])
        if not goes_before(state, expert, other, group, now):
            break
        state.heap[first + place] = other
        state.at[other] = place
        place = above
    while 2 * place + 1 < held:
        below = 2 * place + 1
        other = as_key(state.heap[first + below])
        if below + 1 < held:
            second = as_key(state.heap[first + below + 1])
            if goes_before(state, second, other, group, now):
                below, other = below + 1, second
        if not goes_before(state, other, expert, group, now):
            break
        state.heap[first + place] = other
        state.at[other] = place
        place = below
    state.heap[first + place] = expert
    state.at[expert] = place


def first_idle(state: "Ordered", seen: np.ndarray, group: int, now: int) -> int:
    """The group's first resident that the current visit does not demand, or -1.

    Below one that is not demanded nothing goes before it, so only what the visit demands is passed through.
    """
    first, held = group * state.experts, state.held[group]
    best = -1
    place = 0
    while True:
        if place < held:
            expert = as_key(state.heap[first + place])
            if best < 0 or goes_before(state, expert, as_key(best), group, now):
                if seen[expert] == now:
                    place = 2 * place + 1
                    continue
                best = state.heap[first + place]
        # On to what is not below this: the sibling, or that of the nearest one above that has one to its right.
        while place > 0 and place % 2 == 0:
            place = (place - 1) // 2
        if place == 0:
            return best
        place += 1


def goes_before(state: "Ordered", expert: int, other: int, group: int, now: int) -> bool:
    """Whether the expert is to be evicted before the other."""
    mine, its = state.rank(expert, group, now), state.rank(other, group, now)
    return mine < its or (mine == its and state.last_use[expert] < state.last_use[other])
