"""Farthest predicted next use: Belady's rule on a fitted predictor's word."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.fields import parameter, per_expert


class Learned(EvictionPolicy):
    """Evicts the expert whose next use the plan's `eviction.artefact` expects last.

    The predictor says at each use in how many steps the next one will come; experts of a layer that comes soon are
    needed sooner by so many visits. What has not been used for longer will hardly come sooner: each visit of its layer
    without a use puts the next one off by `aging` steps.

    With `bypass` an expert that is expected later than every other bypasses instead of being kept.
    """

    name = "learned"
    summary = "farthest predicted next use (tracekit fit)"
    source = "the job of the feed-forward nets of CECAR and FlashMoE; after Belady 1966"
    reads = "predicted-use"

    aging = parameter(1.0, low=0)
    bypass = parameter(False)

    steps = per_expert(np.float64)
    at = per_expert(np.int64)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.steps[expert] = signal
        self.at[expert] = now

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        self.steps[expert] = signal
        self.at[expert] = now

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        best = -1
        best_rank = self.rank(incoming, group, now) if self.bypass else np.inf
        first = cache.first[group]
        for position in range(first, first + cache.resident_count[group]):
            expert = cache.resident[position]
            if cache.seen[expert] == now:
                continue
            rank = self.rank(expert, group, now)
            if rank < best_rank or (best >= 0 and rank == best_rank and self.last_use[expert] < self.last_use[best]):
                best, best_rank = expert, rank
        return best

    def rank(self, expert: int, group: int, now: int) -> float:
        current = (now - 1) % self.layers
        until_layer = (expert // self.experts - current - 1) % self.layers + 1
        idle = (now - self.at[expert]) // self.layers
        return -(until_layer + self.layers * (self.steps[expert] - 1.0 + self.aging * idle))
