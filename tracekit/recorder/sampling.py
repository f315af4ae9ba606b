"""Sampling: how tokens are drawn, the same for whoever records, generates or validates."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ModelError


class Sampler:
    """Draws tokens for one request: nucleus sampling (Holtzman et al., arXiv 1904.09751, section 3.1)."""

    def __init__(self, temperature: float, top_p: float, rng: np.random.Generator) -> None:
        self.temperature, self.top_p, self._rng = temperature, top_p, rng

    def draw(self, logits: NDArray[np.float32]) -> int:
        """A token for logits [vocabulary]."""
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        cumulative = np.cumsum(np.exp(scaled[order] - scaled[order[0]]))
        cumulative /= cumulative[-1]
        kept = int(np.searchsorted(cumulative, self.top_p)) + 1  # the smallest set that reaches top_p
        cumulative = cumulative[:kept]
        drawn = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        return int(order[min(drawn, len(cumulative) - 1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Request r draws from its own generator, seeded by (`seed`, r), so batches and resuming change nothing. Raises
    ModelError for an impossible value."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(f"temperature must be above 0, not {self.temperature}; without it decoding is greedy")
        if not 0 < self.top_p <= 1:
            raise ModelError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise ModelError(f"seed must be 0 to 2^63 - 1, not {self.seed}")

    @classmethod
    def asked(cls, temperature: float | None, top_p: float | None, seed: int) -> "Sampling | None":
        """What options ask for: greedy, None, where neither a temperature nor a mass is given."""
        if temperature is None and top_p is None:
            return None
        return cls(
            temperature=1.0 if temperature is None else temperature, top_p=1.0 if top_p is None else top_p, seed=seed
        )

    def samplers(self, first: int, count: int) -> list[Sampler]:
        """A sampler for each of so many requests, the first of which is number `first` of all."""
        seeds = (np.random.default_rng([self.seed, request]) for request in range(first, first + count))
        return [Sampler(self.temperature, self.top_p, rng) for rng in seeds]
