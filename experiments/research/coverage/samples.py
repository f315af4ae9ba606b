"""Samples whose truth is known: requests with a size, and a difference between two plans that is 0 on the whole.

Each draws `trials` studies of `count` requests: what the second plan takes more [trials, count], and what both take
together [trials, count]. Their ratio is 0 for all requests that there might be, so an interval should hold 0; adding a
true difference moves estimate and interval alike.
"""

import math
from collections.abc import Callable

import numpy as np

SPREAD = 0.05
"""By how much plans differ on a request: as LFU and LRU do on the reference models, and more."""
HALF_IN_TWENTIETH = 1.645
"""Sigma of lognormal lengths of which the longest 5 % hold half: their share is Phi(sigma - 1.645)."""
Sample = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, int, int], Sample]


def alike(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Requests of about one size."""
    return rng.gamma(20, 1 / 20, (trials, count))


def unequal(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Requests of which 5 % hold half the tokens."""
    return rng.lognormal(0, HALF_IN_TWENTIETH, (trials, count))


def normal(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Differences to both sides alike."""
    return rng.normal(0, SPREAD, (trials, count))


def exponential(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Differences of skewness 2."""
    return SPREAD * (rng.exponential(1, (trials, count)) - 1)


def lognormal(rng: np.random.Generator, trials: int, count: int) -> np.ndarray:
    """Differences of skewness 6: few requests gain much."""
    return SPREAD * (rng.lognormal(0, 1, (trials, count)) - math.exp(0.5))


def homogeneous(rng: np.random.Generator, trials: int, count: int) -> Sample:
    sizes = alike(rng, trials, count)
    return sizes * normal(rng, trials, count), sizes


def skewed(rng: np.random.Generator, trials: int, count: int) -> Sample:
    sizes = alike(rng, trials, count)
    return sizes * exponential(rng, trials, count), sizes


def very_skewed(rng: np.random.Generator, trials: int, count: int) -> Sample:
    sizes = alike(rng, trials, count)
    return sizes * lognormal(rng, trials, count), sizes


def long_requests(rng: np.random.Generator, trials: int, count: int) -> Sample:
    sizes = unequal(rng, trials, count)
    return sizes * normal(rng, trials, count), sizes


def long_even_out(rng: np.random.Generator, trials: int, count: int) -> Sample:
    """The longer the request, the less it strays: its tokens differ independently."""
    sizes = unequal(rng, trials, count)
    return np.sqrt(sizes) * normal(rng, trials, count), sizes


def long_and_skewed(rng: np.random.Generator, trials: int, count: int) -> Sample:
    sizes = unequal(rng, trials, count)
    return sizes * exponential(rng, trials, count), sizes


def long_gain_more(rng: np.random.Generator, trials: int, count: int) -> Sample:
    """Every request pays the same at its start, so that the gain depends on its length."""
    sizes = unequal(rng, trials, count)
    mean = math.exp(HALF_IN_TWENTIETH**2 / 2)
    return sizes * (normal(rng, trials, count) + 0.02 / mean) - 0.02, sizes


SAMPLES: dict[str, Draw] = {
    "homogeneous": homogeneous,
    "skewed differences (2)": skewed,
    "very skewed differences (6)": very_skewed,
    "5 % hold half": long_requests,
    "5 % hold half, long ones even out": long_even_out,
    "5 % hold half, skewed (2)": long_and_skewed,
    "5 % hold half, long ones gain more": long_gain_more,
}


def rare(rng: np.random.Generator, trials: int, count: int) -> Sample:
    """One request in ten gains 45 %, the others lose 5 %: what no method sees in a sample that has none of them."""
    sizes = alike(rng, trials, count)
    return sizes * np.where(rng.random((trials, count)) < 0.1, 0.45, -0.05), sizes


UNSEEN: dict[str, Draw] = {"one in ten gains 45 %, nine lose 5 %": rare}
"""Samples whose truth no interval holds often enough while requests are few."""
