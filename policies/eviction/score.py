"""Decayed gate score: how much weight the gate has lately given an expert."""

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import parameter, per_expert


class Score(EvictionPolicy):
    """Evicts the expert with the least gate weight, summed over its layer's visits and decayed by each.

    HybriMoE decays the scores of all experts that its gate ranks near the top; this takes the weights of those chosen,
    which every trace with weights holds.
    """

    name = "score"
    summary = "least decayed gate weight"
    source = "after Zhong et al. 2025, HybriMoE, arXiv 2504.05897 (score-aware caching)"
    reads = "gate-weight"

    decay = parameter(0.9, low=0, high=1)

    score = per_expert(np.float64)
    at = per_expert(np.int64)

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        self.score[expert] = self.rank(expert, group, now) + signal
        self.at[expert] = now

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        self.score[expert] = self.rank(expert, group, now) + signal
        self.at[expert] = now

    def rank(self, expert: int, group: int, now: int) -> float:
        visits = (now - self.at[expert]) // self.layers
        return self.score[expert] * self.decay**visits
