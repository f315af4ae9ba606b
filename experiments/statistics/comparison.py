"""Comparing two plans by what each request cost under either: intervals, corrected probabilities, a verdict in words.

Requests are the units: a trace's steps are not independent of each other, its requests nearly are (the cache's content
is handed on from one to the next, the text is not). Every comparison is paired: both plans served the same requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from experiments.statistics.interval import Ratio, fewest_requests, interval, least_probability, probability, ratio_of
from tracekit.errors import StudyError

Outcome = Literal["better", "worse", "level", "none", "identical", "too few"]
Quantity = Literal["tokens/s", "p99 time per token", "bytes loaded", "experts loaded", "hit ratio"]
LEAST_EFFECT = 0.005
"""The smallest difference that anybody would act on, as a share: below it plans are level."""
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first` against `second`, over the same requests.

    `effect` is how much better the first is, as a share: of tokens per second, or of the larger cost saved; of hit
    ratios the difference. `low` and `high` are its interval (None: too few requests for one that would hold). `p`: how
    often plans that are alike would differ as much. `corrected`: the same for all comparisons of a family together
    (Holm). `wins` of `requests` were cheaper with the first. `effective`: how many equal requests tell as much as
    these. `size`: Cohen's d of paired differences, None if they are all equal. `more_requests` would settle the least
    effect of interest with a probability of POWER; 0 if these are enough, None if that cannot be told.
    """

    first: str
    second: str
    quantity: Quantity
    requests: int
    effect: float
    low: float | None
    high: float | None
    p: float
    wins: int
    size: float | None
    more_requests: int | None
    effective: float = 0.0
    corrected: float = 1.0
    outcome: Outcome = "none"
    verdict: str = ""


def compare(
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    quantity: Quantity,
    *,
    lookups: np.ndarray | None = None,
    level: float = 0.95,
    least_effect: float = LEAST_EFFECT,
    family: int = 1,
) -> Comparison:
    """Compare two plans by the costs of each request, [requests] each, in the same order: time, bytes, loads, or
    misses.

    What is estimated is how much the second costs more as a share of what both cost together, from which effects of
    rates and of costs follow, whoever comes first; of hit ratios, misses as a share of `lookups` [requests]. Interval
    and probability are `experiments.statistics.interval`'s, and agree: at 1 - `level` or less the interval leaves 0
    out.

    `family` is how many comparisons are judged together: so many more requests are needed.

    Raises StudyError when the costs are not of the same requests.
    """
    ours, theirs = (np.asarray(costs, np.float64) for _, costs in (first, second))
    shapes = {costs.shape for costs in (ours, theirs, ours if lookups is None else np.asarray(lookups))}
    if len(shapes) > 1 or ours.ndim != 1 or len(ours) == 0:
        raise StudyError(f"{first[0]} and {second[0]} have not served the same requests: nothing to compare")
    wholes = ours + theirs if lookups is None else np.asarray(lookups, np.float64)
    count = len(ours)
    different = theirs - ours
    wins = int((different > 0).sum())
    if not different.any():
        return Comparison(first[0], second[0], quantity, count, 0.0, 0.0, 0.0, 1.0, wins, None, 0, float(count))
    ratio = ratio_of(different, wholes)
    # A request that both plans served alike does not tell which is better.
    effective = min(float(ratio.effective), int((different != 0).sum()))
    found = Comparison(
        first=first[0],
        second=second[0],
        quantity=quantity,
        requests=count,
        effect=_effect(float(ratio.value), quantity),
        low=None,
        high=None,
        p=max(float(probability(ratio)), least_probability(effective)),
        wins=wins,
        size=_size(different),
        more_requests=None,
        effective=effective,
    )
    if effective < fewest_requests(level):
        return found
    low, high = (_effect(min(max(float(end), -1.0), 1.0), quantity) for end in interval(ratio, level))
    more = _more_requests(ratio, quantity, count, (1 - level) / max(1, family), least_effect)
    return replace(found, low=low, high=high, more_requests=more)


def _size(different: np.ndarray) -> float | None:
    spread = float(different.std(ddof=1)) if len(different) > 1 else 0.0
    return float(different.mean()) / spread if spread else None


def _more_requests(ratio: Ratio, quantity: Quantity, count: int, alpha: float, least_effect: float) -> int | None:
    """How many more requests like these would tell the least effect of interest from none."""
    from scipy.special import ndtri

    if not least_effect:
        return None
    value = float(ratio.value)
    slope = {"tokens/s": 2 / max(1 - value, 1e-9) ** 2, "hit ratio": 1.0}.get(quantity, 2 / (1 + abs(value)) ** 2)
    needed: float = (ndtri(1 - alpha / 2) + ndtri(POWER)) * float(ratio.error) * slope / least_effect
    return max(0, math.ceil(count * (needed**2 - 1)))


def judge(family: Sequence[Comparison], *, level: float = 0.95, least_effect: float = LEAST_EFFECT) -> list[Comparison]:
    """The comparisons with probabilities corrected for their number, outcomes and verdicts.

    A difference counts if the corrected probability is at most 1 - `level`, and if it is at least `least_effect`; plans
    are level where it is smaller, or where the whole interval is.
    """
    corrected = holm([found.p for found in family])
    options = {"level": level, "least_effect": least_effect}
    return [judged(found, p, family=len(family), **options) for found, p in zip(family, corrected, strict=True)]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number (Holm 1979): so probable is it at most that any one errs."""
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    found = [0.0] * len(order)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[place]))
        found[place] = largest
    return found


def rate_intervals(tokens: np.ndarray, times: np.ndarray, *, level: float = 0.95) -> np.ndarray | None:
    """Intervals of tokens per second over the same requests: f64 [plans, 2].

    `tokens` [requests]; `times` [plans, requests] in nanoseconds. None where an interval of so few requests would not
    hold.
    """
    found = ratio_of(np.broadcast_to(tokens, times.shape).astype(np.float64), times / 1e9)
    if not len(times) or float(np.min(found.effective)) < fewest_requests(level):
        return None
    ends: np.ndarray = np.maximum(np.stack(interval(found, level), axis=-1), 0.0)
    return ends


def _effect(value: float, quantity: Quantity) -> float:
    """The effect from the share (theirs - ours) / (ours + theirs), or, of hit ratios, misses saved / lookups.

    Positive where the first is better. Of rates the ratio less one; of costs what is saved of the larger.
    """
    if quantity == "hit ratio":
        return value
    if quantity == "tokens/s":
        return 2 * value / max(1 - value, np.finfo(float).tiny)
    return 2 * value / (1 + abs(value))


def judged(
    found: Comparison, corrected: float, *, family: int, level: float = 0.95, least_effect: float = LEAST_EFFECT
) -> Comparison:
    """One comparison of a `family` of so many, whose probability was corrected: its outcome and its verdict."""
    alpha, first, second = 1 - level, found.first, found.second
    least = fewest_requests(1 - alpha / max(1, family))
    if found.size is None and found.effect == 0 and found.p == 1.0:
        words = f"no difference: {first} and {second} cost the same on every request"
        return replace(found, corrected=corrected, outcome="identical", verdict=words)
    if found.effective < least or found.low is None or found.high is None:
        words = f"{first} against {second}: {_amount(found, found.effect)}, but {_requests(found.requests)} "
        words += "cannot tell; " + _too_few(found, least)
        return replace(found, corrected=corrected, outcome="too few", verdict=words)
    shown = corrected <= alpha
    outcome: Outcome = "none"
    larger = max(abs(found.effect), abs(_turned(found, found.effect)))  # the same from either side
    if max(abs(found.low), abs(found.high)) < least_effect or (shown and larger < least_effect):
        outcome = "level"
        words = f"{first} and {second} are level: {_amount(found, found.effect)} {_interval(found.low, found.high)}, "
        words += f"less than the {_share(least_effect)} % that would matter"
    elif shown and found.effect > 0:
        outcome = "better"
        words = f"{first} beats {second} by {_amount(found, found.effect)} {_interval(found.low, found.high)}"
    elif shown:
        outcome = "worse"
        # The same numbers from the other side: of rates b / a - 1 becomes a / b - 1.
        turned = [_turned(found, value) for value in (found.effect, found.high, found.low)]
        words = f"{second} beats {first} by {_amount(found, turned[0])} {_interval(turned[1], turned[2])}"
    else:
        words = f"no difference shown between {first} and {second} at this trace length: "
        words += f"{_amount(found, found.effect)} {_interval(found.low, found.high)}"
        if found.low > 0 or found.high < 0:
            words += "; among so many comparisons that may be chance"
        if found.more_requests:
            more = _requests(found.more_requests, "more")
            words += f"; about {more} would settle {_share(least_effect)} %"
        elif found.more_requests == 0:
            words += f"; {_share(least_effect)} % would have shown"
    return replace(found, corrected=corrected, outcome=outcome, verdict=words)


def _too_few(found: Comparison, least: float) -> str:
    """What is wanting: requests that differ, or requests that are not so unequal."""
    needed = f"at least {math.ceil(least)} are needed"
    if found.effective == found.requests or found.requests < least:
        return needed
    differ = found.effective == int(found.effective)
    counted = f"{found.effective:.0f} of them differ" if differ else f"so unequal they count as {found.effective:.1f}"
    return f"only {counted}; {needed}" if differ else f"{counted}; {needed}"


def _turned(found: Comparison, effect: float) -> float:
    """The effect seen from the second plan."""
    return 1 / (1 + effect) - 1 if found.quantity == "tokens/s" else -effect


UNITS: dict[Quantity, str] = {
    "tokens/s": "% tokens/s",
    "p99 time per token": "% of the p99 time per token",
    "bytes loaded": "% of the bytes",
    "experts loaded": "% of the loads",
    "hit ratio": "points of hit ratio",
}
"""What effects are said in."""


def _requests(count: int, more: str = "") -> str:
    return f"{count:,} {more + ' ' if more else ''}request{'' if count == 1 else 's'}"


def _amount(found: Comparison, effect: float) -> str:
    sign = "-" if effect < 0 else ""
    return f"{sign}{_share(abs(effect))} {UNITS[found.quantity]}"


def _interval(low: float, high: float) -> str:
    return f"[{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    """A percentage with one digit after the point, or two digits that count."""
    percent = 100 * value
    return f"{percent:.1f}" if abs(percent) >= 0.95 or percent == 0 else f"{percent:.2g}"
