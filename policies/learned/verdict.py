"""From scores to what policies are told: a threshold for suggestions, steps until the next use."""

import math

import numpy as np

from policies.learned.arithmetic import UNIT


def least_score(probability: float) -> float:
    """The score, in units, of an expert that is demanded with this probability: scores are log odds."""
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return float(math.floor(math.log(probability / (1 - probability)) * UNIT))


def steps_until(scores: np.ndarray) -> np.ndarray:
    """Steps until the next use, at least 1, from scores: their logarithm to base 2 in units.

    Powers of two exactly, linear between them: `exp2` of two libraries may differ in the last digit, and order is all
    that matters.
    """
    scores = scores.clip(0, 40 * UNIT)
    power = np.floor(scores * (1 / UNIT))
    steps: np.ndarray = np.ldexp(1 + (scores - power * UNIT) * (1 / UNIT), power.astype(np.int64))
    return steps


def log2_steps(steps: np.ndarray) -> np.ndarray:
    """The inverse of `steps_until`, without units: what a predictor for eviction is fitted to."""
    mantissa, exponent = np.frexp(steps)
    return exponent - 1 + (2 * mantissa - 1)  # type: ignore[no-any-return]
