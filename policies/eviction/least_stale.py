"""Least-Stale: what this forward pass is done with goes first; what it has used goes last."""

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import per_expert


class LeastStale(EvictionPolicy):
    """Evicts by forward pass and layer: an expert is stale when it was last used or loaded in an earlier pass.

    Stale experts of layers up to the current one go first, lowest layer first: nothing asks for them before the next
    pass. Then the stale ones of layers yet to come, the farthest ahead first. Then what this pass has used or loaded,
    lowest layer, and so oldest, first. Ties: least recent. Our reading: the paper's abstract says that expert access
    does not follow temporal locality and that Least-Stale, by exploiting the predictable order of access, evicts less
    of what the current pass still needs (collision misses); the order above is ours, not taken from the full text.
    """

    name = "least-stale"
    summary = "experts not used in this forward pass, layers already passed first; then the oldest of this pass"
    source = "after Hoang et al. 2026, SpecMD, arXiv 2602.03921 (our reading of its abstract)"

    used_in = per_expert(np.int64, -1)

    def on_insert(self, expert: int, group: int, now: int, signal: float) -> None:
        self.used_in[expert] = (now - 1) // self.layers

    def on_reference(self, expert: int, group: int, now: int, signal: float) -> None:
        self.used_in[expert] = (now - 1) // self.layers

    def rank(self, expert: int, group: int, now: int) -> float:
        step, current = (now - 1) // self.layers, (now - 1) % self.layers
        layer = expert // self.experts
        if self.used_in[expert] == step:
            return 2 * self.layers + layer
        return layer if layer <= current else 2 * self.layers - layer
