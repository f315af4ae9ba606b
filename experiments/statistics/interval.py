"""The interval of a ratio of sums over requests that are few and unequal: how sure a study's figures are.

Requests are the units, and a figure is a ratio of sums over them: what all of them saved over what all of them cost.
With few requests, or with half of the tokens in one of twenty, percentiles of a bootstrap are too narrow
(docs/experiments.md keeps how narrow). What is used instead holds by simulation (`experiments.research.coverage`),
needs no random numbers, and takes whole arrays of samples at once:

- the error of the ratio by its leverages (HC2: MacKinnon & White 1985), against Student's t with the degrees of freedom
  that the requests' sizes leave (Bell & McCaffrey 2002): one long request is one degree of freedom;
- the same without its skewness (Hall 1992, On the removal of skewness by transformation, J. R. Stat. Soc. B 54:221);
- the wider end of the two on either side, and both errors larger by 1 + WIDER / effective requests, for what a small
  sample cannot show of the tails that it was drawn from.
"""

import math
from typing import NamedTuple

import numpy as np

WIDER = 4.0
"""How much larger errors are taken, by effective requests: found by simulation, as little as keeps false positives of
lognormal differences (skewness 6) within 6 %."""
NEARLY_ONE = 1 - 1e-12


class Ratio(NamedTuple):
    """A ratio of sums over requests, and what its interval follows from; every field [...], without the requests.

    `effective` is the number of equal requests that tell as much: (sum s)^2 / sum s^2 over sizes s (Kish 1965). `error`
    is its standard error against `degrees` of freedom, `plain` the one that `skewness` (of the mean) belongs to.
    """

    value: np.ndarray
    effective: np.ndarray
    error: np.ndarray
    degrees: np.ndarray
    plain: np.ndarray
    skewness: np.ndarray


def ratio_of(parts: np.ndarray, wholes: np.ndarray) -> Ratio:
    """The ratio of the sums of `parts` and `wholes` [..., requests]; wholes are at least 0, and not all of them 0."""
    total = wholes.sum(axis=-1, keepdims=True)
    value = parts.sum(axis=-1, keepdims=True) / total
    share = wholes / total
    pull = (parts - value * wholes) / total
    # Rounding leaves crumbs where all requests say the same.
    pull = np.where(np.abs(pull) <= 1e-14 * (np.abs(parts) + np.abs(value) * wholes) / total, 0.0, pull)
    weight = 1 / (1 - np.minimum(share, NEARLY_ONE))
    squares = (pull**2).sum(axis=-1)
    plain = np.sqrt(squares)
    skewness = np.divide((pull**3).sum(axis=-1), plain**3, out=np.zeros_like(plain), where=plain > 0)
    return Ratio(
        value=value[..., 0],
        effective=1 / (share**2).sum(axis=-1),
        error=np.sqrt((weight * pull**2).sum(axis=-1)),
        degrees=_degrees(share, weight),
        plain=plain,
        skewness=skewness,
    )


def _degrees(share: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Degrees of freedom of HC2's variance where each request's own noise grows with its size: [...].

    Bell & McCaffrey 2002: (tr M)^2 / tr M^2 with M = W^1/2 (I - H)' C (I - H) W^1/2, here of one column, so that
    H = h 1' (shares h), W = diag(h^2) and C = diag(1 / (1 - h)) leave sums.
    """
    noise = share**2
    whole = noise.sum(axis=-1, keepdims=True)
    off = -2 * share * noise + share**2 * whole  # the diagonal of what H takes away
    hh, nn, hn = ((weight * a * b).sum(axis=-1) for a, b in ((share, share), (noise, noise), (share, noise)))
    trace = (weight * (noise + off)).sum(axis=-1)
    every = 2 * hh * nn + 2 * hn**2 + whole[..., 0] ** 2 * hh**2 - 4 * whole[..., 0] * hh * hn
    diagonal = (weight**2 * ((noise + off) ** 2 - off**2)).sum(axis=-1)
    found: np.ndarray = np.maximum(trace**2 / np.maximum(every + diagonal, np.finfo(float).tiny), 1.0)
    return found


def interval(ratio: Ratio, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Its lower and upper end at this level, [...]."""
    from scipy.special import stdtrit

    wider = 1 + WIDER / ratio.effective
    far = stdtrit(ratio.degrees, (1 + level) / 2)
    straight = far * ratio.error
    ends = [np.maximum(straight, side * _skewed(side * far, ratio.skewness) * ratio.plain) * wider for side in (1, -1)]
    return ratio.value - ends[0], ratio.value + ends[1]


def probability(ratio: Ratio) -> np.ndarray:
    """How often a ratio of 0 would be missed by as much: 1 less the largest level whose interval leaves 0 out,
    [...]."""
    from scipy.special import stdtr

    wider = 1 + WIDER / ratio.effective
    side = np.where(ratio.value < 0, -1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        straight = np.abs(ratio.value) / (ratio.error * wider)
        # As many plain errors from 0 as there are, and back through the transformation.
        bent = side * _unskewed(ratio.value / (ratio.plain * wider), ratio.skewness)
    smaller = np.minimum(straight, bent)
    found = np.where(ratio.value == 0, 1.0, np.where(ratio.plain == 0, 0.0, 2 * stdtr(ratio.degrees, -smaller)))
    return np.minimum(found, 1.0)


def _unskewed(errors: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Hall's transformation of a distance in standard errors: nearly normal where the distance is skewed."""
    cubic: np.ndarray = errors + skewness * errors**2 / 3 + skewness**2 * errors**3 / 27 + skewness / 6
    return cubic


def _skewed(normal: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """The inverse of `_unskewed`."""
    small = np.abs(skewness) < 1e-6
    some = np.where(small, 1.0, skewness)
    found = 3 / some * (np.cbrt(1 + some * (normal - some / 6)) - 1)
    return np.where(small, normal, found)


def least_probability(effective: float) -> float:
    """No fewer than this, whatever the costs: equals differ on the same side of as many requests by chance that
    often."""
    return min(1.0, math.exp2(1 - effective))


def fewest_requests(level: float = 0.95) -> float:
    """Fewer effective requests than this cannot show anything at this level (`least_probability`)."""
    return 1 - math.log2(1 - level) - 1e-9
