"""Localities for tests, and what routing of one must be like by the normal distribution alone."""

import math
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from tracekit.priors import Family, Locality


def locality(**parts: Any) -> Locality:
    """No locality at all but for the parts given."""
    nothing = {"popularity": 0.0, "topic": 0.0, "slow": 0.0, "slow_tokens": 20.0, "fast": 0.0, "fast_tokens": 2.0}
    return Locality(**nothing | parts)


def only(one: Locality) -> Family:
    """A family of one locality at every level."""
    return Family(name="one", experts=1, top_k=1, low=one, likely=one, high=one, known=())


def expected_overlap(correlation: float, experts: int, top_k: int) -> float:
    """The share of its experts that a token has from another, their scores being correlated; experts are many.

    P(X > z, Y > z) / P(X > z) of a bivariate normal, z such that P(X > z) = top_k / experts, by the midpoint rule.
    """
    share = top_k / experts
    z = float(ndtri(1 - share))
    x = z + (np.arange(20_000) + 0.5) * (9 - z) / 20_000
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    both = ndtr((correlation * x - z) / math.sqrt(1 - correlation**2))
    return float((density * both).sum() * (9 - z) / 20_000 / share)
