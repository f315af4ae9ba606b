"""Scores of gates that are as local as told, and the experts they choose, block by block.

The random numbers are the same whatever the locality: traces of one seed differ by how the same noise is mixed, so that
more locality means more hits in each of them, not only in the mean.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from tracekit.arrays import F32, U16
from tracekit.priors.family import Locality
from tracekit.rows import UNUSED

BLOCK = 1 << 21
"""Scores drawn at once."""


class Gate:
    """The stream of choices of one locality; `begin` a request, then take its tokens from `next`."""

    def __init__(self, locality: Locality, experts_per_layer: Sequence[int], top_k: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        layers, experts = len(experts_per_layer), max(experts_per_layer)
        self.layers, self.top_k = layers, top_k
        self._shape = (layers, experts)
        factor = np.array([locality.at_layer(layer, layers) for layer in range(layers)])
        part = {name: np.sqrt(factor * getattr(locality, name)) for name in ("popularity", "topic", "slow", "fast")}
        rest = 1 - factor * (locality.popularity + locality.topic + locality.slow + locality.fast)
        self._mix = np.stack([part["slow"], part["fast"], np.sqrt(np.maximum(rest, 0))], axis=1).astype(np.float32)
        keep = np.exp(-1 / np.array([locality.slow_tokens, locality.fast_tokens]))
        self._keep, self._renew = keep.astype(np.float32), np.sqrt(1 - keep**2).astype(np.float32)
        self._topic = part["topic"][:, None]
        absent = np.arange(experts) >= np.array(experts_per_layer)[:, None]
        self._popularity = np.where(
            absent, -np.inf, part["popularity"][:, None] * self._rng.standard_normal(self._shape)
        )
        self._fixed = np.zeros(self._shape, np.float32)
        self._state = np.zeros((2, *self._shape), np.float32)  # slow, fast

    @property
    def block(self) -> int:
        """Tokens to ask for at once."""
        return max(1, BLOCK // (self._shape[0] * self._shape[1]))

    def begin(self) -> None:
        """Another request: another topic, and nothing of the text before."""
        topic = self._topic * self._rng.standard_normal(self._shape)
        self._fixed = (self._popularity + topic).astype(np.float32)
        self._state = self._rng.standard_normal(self._state.shape, dtype=np.float32)

    def next(self, tokens: int) -> U16:
        """Choices of the request's next tokens, [tokens, layers, top_k], highest score first.

        A layer with fewer experts than `top_k` leaves slots unused.
        """
        noise = self._rng.standard_normal((tokens, 3, *self._shape), dtype=np.float32)
        chosen = np.full((tokens, self.layers, self.top_k), UNUSED, np.uint16)
        _choose(noise, self._fixed, self._mix, self._keep, self._renew, self._state, chosen)
        return chosen


@njit(cache=True)
def _choose(noise: F32, fixed: F32, mix: F32, keep: F32, renew: F32, state: F32, chosen: U16) -> None:
    tokens, layers, top_k = chosen.shape
    experts = fixed.shape[1]
    best = np.empty(top_k, np.float32)
    for token in range(tokens):
        for layer in range(layers):
            best[:] = -np.inf
            slow, fast, rest = mix[layer]
            for expert in range(experts):
                state[0, layer, expert] = keep[0] * state[0, layer, expert] + renew[0] * noise[token, 0, layer, expert]
                state[1, layer, expert] = keep[1] * state[1, layer, expert] + renew[1] * noise[token, 1, layer, expert]
                score = fixed[layer, expert] + rest * noise[token, 2, layer, expert]
                score += slow * state[0, layer, expert] + fast * state[1, layer, expert]
                if score > best[top_k - 1]:  # of equal scores the lower expert is chosen
                    place = top_k - 1
                    while place > 0 and score > best[place - 1]:
                        best[place] = best[place - 1]
                        chosen[token, layer, place] = chosen[token, layer, place - 1]
                        place -= 1
                    best[place] = score
                    chosen[token, layer, place] = expert
