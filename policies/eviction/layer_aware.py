"""Expected next use, from the order of the layers and how often an expert is chosen: no cliff for a global cache."""

import numpy as np

from policies.eviction.base import EvictionPolicy
from policies.fields import parameter, per_expert


class LayerAware(EvictionPolicy):
    """Evicts the expert whose next use is expected last.

    Layers are visited in turn, so an expert of layer m cannot be used before the model comes to m again. From there it
    takes 1/p visits of its layer on average, p being how often it was chosen lately (frequency, decayed by each visit
    of its layer). Recency alone evicts just the experts of the layer that comes next: below one token's demand a global
    LRU never hits. Ours; the order of layers as a source of eviction decisions follows Hoang et al. 2026.
    """

    name = "layer-aware"
    summary = "farthest expected next use, from layer order and decayed frequency"
    source = "this project; compare Hoang et al. 2026, SpecMD, arXiv 2602.03921"

    decay = parameter(0.95, low=0, high=1)

    weight = per_expert(np.float64)
    at = per_expert(np.int64)

    def on_hit(self, expert: int, group: int, now: int, signal: float) -> None:
        count(self, expert, now)

    def on_miss(self, expert: int, group: int, now: int, signal: float) -> None:
        count(self, expert, now)

    def rank(self, expert: int, group: int, now: int) -> float:
        current = (now - 1) % self.layers
        until_layer = (expert // self.experts - current - 1) % self.layers + 1
        chosen = (1.0 - self.decay) * decayed(self, expert, now)
        return -(until_layer + self.layers * (1.0 / max(chosen, 1e-9) - 1.0))


def count(state: "LayerAware", expert: int, now: int) -> None:
    """One more lookup of the expert."""
    state.weight[expert] = decayed(state, expert, now) + 1.0
    state.at[expert] = now


def decayed(state: "LayerAware", expert: int, now: int) -> float:
    """The expert's lookups, each decayed by the visits of its layer since."""
    return state.weight[expert] * state.decay ** ((now - state.at[expert]) // state.layers)
