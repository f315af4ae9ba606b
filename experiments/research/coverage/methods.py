"""Ways to an interval that studies do not use, each measured beside the one they do: what was tried, and failed.

All of them take `parts` and `wholes` [trials, requests] and give the ends of 95 % intervals, [trials] each. Resamples
are the same for all trials of a call, so that sums over them are matrix products.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from experiments.statistics.interval import interval, ratio_of

LEVEL = 0.95
RESAMPLES = 999
AT_ONCE = 200
Ends = tuple[np.ndarray, np.ndarray]
Method = Callable[[np.ndarray, np.ndarray, np.random.Generator], Ends]


def used(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """What studies use."""
    return interval(ratio_of(parts, wholes), LEVEL)


def degrees_alone(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """HC2 and Student's t with effective degrees of freedom, no correction for skewness, no widening."""
    ratio = ratio_of(parts, wholes)
    far = special.stdtrit(ratio.degrees, (1 + LEVEL) / 2) * ratio.error
    return ratio.value - far, ratio.value + far


def percentiles(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """Percentiles of the bootstrap."""
    ends = np.quantile(_resampled(parts, wholes, rng)[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return ends[0], ends[1]


def bca(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """Bias-corrected and accelerated (Efron 1987)."""
    values = np.sort(_resampled(parts, wholes, rng)[0], axis=0)  # [resamples, trials]
    ratio = ratio_of(parts, wholes)
    below = np.clip((values < ratio.value).mean(axis=0), 1 / (RESAMPLES + 1), RESAMPLES / (RESAMPLES + 1))
    bias = special.ndtri(below)
    left = (parts.sum(1, keepdims=True) - parts) / (wholes.sum(1, keepdims=True) - wholes)
    away = left.mean(axis=1, keepdims=True) - left
    pull = (away**3).sum(1) / 6 / np.maximum((away**2).sum(1), 1e-300) ** 1.5
    ends = []
    for z in (special.ndtri((1 - LEVEL) / 2), special.ndtri((1 + LEVEL) / 2)):
        share = special.ndtr(bias + (bias + z) / (1 - pull * (bias + z)))
        place = np.clip((share * RESAMPLES).astype(int), 0, RESAMPLES - 1)
        ends.append(np.take_along_axis(values, place[None], axis=0)[0])
    return ends[0], ends[1]


def studentised(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """Bootstrap-t: each resample's distance in its own standard errors."""
    values, errors = _resampled(parts, wholes, rng)
    ratio = ratio_of(parts, wholes)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.nan_to_num((values - ratio.value) / errors, nan=0.0, posinf=np.inf, neginf=-np.inf)
    distance.sort(axis=0)
    low, high = (distance[round(share * (RESAMPLES + 1)) - 1] for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    with np.errstate(invalid="ignore"):
        return ratio.value - high * ratio.plain, ratio.value - low * ratio.plain


TRIED: dict[str, Method] = {
    "percentiles of the bootstrap": percentiles,
    "BCa": bca,
    "bootstrap-t": studentised,
    "t, effective degrees of freedom": degrees_alone,
    "used": used,
}


def _resampled(parts: np.ndarray, wholes: np.ndarray, rng: np.random.Generator) -> Ends:
    """The ratio of each resample and its standard error, [resamples, trials] each."""
    trials, count = parts.shape
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    values, errors = np.empty((RESAMPLES, trials)), np.empty((RESAMPLES, trials))
    for first in range(0, trials, AT_ONCE):
        some = slice(first, first + AT_ONCE)
        part, whole = parts[some].T, wholes[some].T
        total = drawn @ whole
        value = drawn @ part / total
        squares = drawn @ part**2 - 2 * value * (drawn @ (part * whole)) + value**2 * (drawn @ whole**2)
        values[:, some], errors[:, some] = value, np.sqrt(np.maximum(squares, 0)) / total
    return values, errors
