"""Intervals of ratios: against a slow calculation from the definitions, and how often they hold, by simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from experiments.research.coverage.samples import SAMPLES
from experiments.statistics.interval import (
    WIDER,
    fewest_requests,
    interval,
    least_probability,
    probability,
    ratio_of,
)


def slowly(parts: np.ndarray, wholes: np.ndarray, level: float) -> tuple[float, float]:
    """The interval from weighted least squares through 0, matrix by matrix."""
    count, sizes = len(parts), wholes / wholes.sum()
    weights = np.diag(1 / wholes)
    slope = float(parts @ weights @ wholes / (wholes @ weights @ wholes))
    hat = np.outer(wholes, weights @ wholes) / (wholes @ weights @ wholes)
    rest = parts - hat @ parts
    inflated = np.diag(1 / (1 - np.diag(hat)))
    error = math.sqrt(float(rest @ inflated @ rest)) / wholes.sum()
    noise = np.diag(sizes)  # standard deviations as large as the requests
    matrix = noise @ (np.eye(count) - hat).T @ inflated @ (np.eye(count) - hat) @ noise
    degrees = np.trace(matrix) ** 2 / np.trace(matrix @ matrix)
    far = float(stats.t.ppf((1 + level) / 2, degrees))
    plain = math.sqrt(float(rest @ rest)) / wholes.sum()
    skewness = float((rest**3).sum() / (rest @ rest) ** 1.5)

    def unskewed(x: float) -> float:
        return x + skewness * x * x / 3 + skewness**2 * x**3 / 27 + skewness / 6

    def where(target: float) -> float:
        """The distance that Hall's transformation takes to `target`, by bisection: it rises."""
        low, high = -1e6, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if unskewed(middle) < target else (low, middle)
        return low

    wider = 1 + WIDER * float((sizes**2).sum())
    below = max(far * error, where(far) * plain) * wider
    above = max(far * error, -where(-far) * plain) * wider
    return slope - below, slope + above


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_is_what_its_definitions_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 30))
    wholes = rng.lognormal(0, rng.uniform(0, 2), count)
    parts = wholes * (0.03 + 0.05 * rng.lognormal(0, 1, count) * (-1) ** seed)
    for level in (0.8, 0.95, 0.999):
        low, high = interval(ratio_of(parts, wholes), level)
        assert (float(low), float(high)) == pytest.approx(slowly(parts, wholes, level), rel=1e-6, abs=1e-9)


def test_probability_and_interval_agree() -> None:
    """0 lies at the end of the interval of 1 less the probability; of many samples at once as of one."""
    rng = np.random.default_rng(3)
    wholes = rng.lognormal(0, 1, (200, 15))
    parts = wholes * rng.normal(0.02, 0.04, (200, 15))
    found = ratio_of(parts, wholes)
    p = probability(found)
    for some, value in enumerate(p.tolist()):
        alone = ratio_of(parts[some], wholes[some])
        assert float(probability(alone)) == value
        if 1e-9 < value < 1:
            low, high = interval(alone, 1 - value)
            assert min(abs(float(low)), abs(float(high))) < 1e-9 * (float(high) - float(low)) + 1e-12
    low, high = interval(found, 0.95)
    assert ((p <= 0.05) == ((low > 0) | (high < 0))).all() and (p <= 0.05).any() and (p > 0.05).any()


def test_requests_of_one_size_are_as_many_as_they_are() -> None:
    found = ratio_of(np.arange(10.0), np.full(10, 7.0))
    assert (float(found.effective), float(found.degrees)) == pytest.approx((10, 9))
    assert math.ceil(fewest_requests(0.95)) == 6 and least_probability(6) == 1 / 32
    one = ratio_of(np.array([5.0, 0.1, 0.1]), np.array([1e9, 1.0, 1.0]))
    assert float(one.effective) == pytest.approx(1) and float(one.degrees) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", SAMPLES)
def test_intervals_hold_wherever_a_verdict_is_given(name: str) -> None:
    """A small part of `python -m experiments.research.coverage`: of 95 % intervals at least 92 % hold the truth, less
    three standard errors of the trial, and of alike plans no more than 6 %, and as much, are told apart."""
    draw: Callable[..., tuple[np.ndarray, np.ndarray]] = SAMPLES[name]
    rng = np.random.default_rng(7)
    for count in (6, 9, 14, 25, 60):
        parts, wholes = draw(rng, 4000, count)
        found = ratio_of(parts, wholes)
        told = found.effective >= fewest_requests()
        if (trials := int(told.sum())) < 200:
            continue
        low, high = interval(found, 0.95)
        held = float(((low <= 0) & (high >= 0))[told].mean())
        shown = float((np.maximum(probability(found), 2.0 ** (1 - found.effective)) <= 0.05)[told].mean())
        assert held >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / trials), (count, held)
        assert shown <= 0.06 + 3 * math.sqrt(0.06 * 0.94 / trials), (count, shown)
