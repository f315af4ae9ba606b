"""Comparing two plans by what each request cost under either: intervals, corrected probabilities, a verdict in words.

Requests are the units: a trace's steps are not independent of each other, its requests nearly are (the cache's content
is handed on from one to the next, the text is not). Every comparison is paired: both plans served the same requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tracekit.errors import StudyError

Outcome = Literal["better", "worse", "none", "identical", "too few"]
Quantity = Literal["tokens/s", "p99 time per token", "bytes loaded"]
LEAST_EFFECT = 0.01
"""The difference that a comparison without a result should have shown."""
POWER = 0.8
BATCH = 200
SWAPS = 10
"""Times the fewest permutations with which a probability can be small enough."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first` against `second`, over the same requests.

    `effect` is how much better the first is, as a share: of tokens per second, or of the larger cost saved. `low` and
    `high` are its bootstrap interval (None for fewer than three requests). `p`: how often plans that are alike would
    differ as much. `corrected`: the same for all comparisons of a family together (Holm). `wins` of `requests` were
    cheaper with the first. `size`: Cohen's d of paired differences, None if they are all equal. `more_requests` would
    show a difference of LEAST_EFFECT with a probability of POWER; 0 if these are enough.
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
    corrected: float = 1.0
    outcome: Outcome = "none"
    verdict: str = ""


def compare(
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    quantity: Quantity,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    family: int = 1,
) -> Comparison:
    """Compare two plans by the costs of each request: time, or bytes; [requests] each, in the same order.

    The interval is a paired bootstrap over requests, bias-corrected and accelerated (Efron 1987). The probability is of
    a permutation test: were the plans alike, each request might as well have had its two costs the other way round.

    `family` is how many comparisons are judged together: so much smaller a probability has to be told apart from 0, and
    so many more requests are needed for it.

    Raises StudyError when the costs are not of the same requests.
    """
    from scipy import stats

    ours, theirs = (np.asarray(costs, np.float64) for _, costs in (first, second))
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) == 0:
        raise StudyError(f"{first[0]} and {second[0]} have not served the same requests: nothing to compare")
    count = len(ours)
    different = ours - theirs
    wins = int((different < 0).sum())
    if not different.any():
        return Comparison(first[0], second[0], quantity, count, 0.0, 0.0, 0.0, 1.0, wins, None, 0)
    effect = float(_effect(ours, theirs, quantity))
    spread = float(different.std(ddof=1)) if count > 1 else 0.0
    size = -float(different.mean()) / spread if spread else None
    if count < 3:
        return Comparison(first[0], second[0], quantity, count, effect, None, None, 1.0, wins, size, None)
    rng = np.random.default_rng(seed)

    def of_sample(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return _effect(a, b, quantity, axis)

    def of_permutation(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        found: np.ndarray = (a - b).sum(axis=axis)
        return found

    proportional = np.ptp(ours * theirs.sum() - theirs * ours.sum()) == 0
    boot = stats.bootstrap(
        (ours, theirs),
        of_sample,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=level,
        method="percentile" if proportional else "BCa",
        rng=rng,
    )
    low, high = (float(end) for end in boot.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        low, high = (float(end) for end in np.quantile(boot.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2]))
    p = float(
        stats.permutation_test(
            (ours, theirs),
            of_permutation,
            permutation_type="samples",
            vectorized=True,
            n_resamples=max(resamples, math.ceil(SWAPS * family / (1 - level))),
            batch=BATCH,
            rng=rng,
        ).pvalue
    )
    needed = (
        (stats.norm.ppf(1 - (1 - level) / 2 / family) + stats.norm.ppf(POWER))
        * float(boot.standard_error)
        / LEAST_EFFECT
    )
    more = max(0, math.ceil(count * (needed**2 - 1)))
    return Comparison(first[0], second[0], quantity, count, effect, low, high, p, wins, size, more)


def judge(family: Sequence[Comparison], *, level: float = 0.95) -> list[Comparison]:
    """The comparisons with probabilities corrected for their number, outcomes and verdicts.

    A difference counts if the corrected probability is at most 1 - `level` and the interval leaves 0 out.
    """
    corrected = holm([found.p for found in family])
    least = fewest_requests(1 - (1 - level) / max(1, len(family)))
    return [_judged(found, p, 1 - level, least) for found, p in zip(family, corrected, strict=True)]


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number (Holm 1979): so probable is it at most that any one errs."""
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    found = [0.0] * len(order)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[place]))
        found[place] = largest
    return found


def rate_intervals(
    tokens: np.ndarray, times: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> np.ndarray | None:
    """Bootstrap intervals of tokens per second over the same requests: f64 [plans, 2].

    `tokens` [requests]; `times` [plans, requests] in nanoseconds. Percentiles; None for fewer than three requests.
    """
    count = len(tokens)
    if count < 3:
        return None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    rates = 1e9 * (drawn @ tokens)[:, None] / (drawn @ times.T)
    found: np.ndarray = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], axis=0).T
    return found


def fewest_requests(level: float = 0.95) -> int:
    """Fewer requests than this cannot show anything at this level: there are too few ways to swap their costs."""
    return math.ceil(1 - math.log2(1 - level) - 1e-9)


def _effect(ours: np.ndarray, theirs: np.ndarray, quantity: Quantity, axis: int = -1) -> np.ndarray:
    """Positive where the first is better. Of rates the ratio less one; of costs what is saved of the larger."""
    a, b = ours.sum(axis=axis), theirs.sum(axis=axis)
    rate = quantity == "tokens/s"
    saved: np.ndarray = b / a - 1 if rate else (b - a) / np.maximum(np.maximum(a, b), np.finfo(float).tiny)
    return saved


def _judged(found: Comparison, corrected: float, alpha: float, least: int) -> Comparison:
    first, second = found.first, found.second
    outcome: Outcome = "none"
    if found.size is None and found.effect == 0 and found.p == 1.0:
        outcome = "identical"
        words = f"no difference: {first} and {second} cost the same on every request"
        return replace(found, corrected=corrected, outcome=outcome, verdict=words)
    if found.requests < least or found.low is None or found.high is None:
        words = f"{first} against {second}: {_amount(found, found.effect)}, but {_requests(found.requests)} "
        words += f"cannot tell; at least {least} are needed"
        return replace(found, corrected=corrected, outcome="too few", verdict=words)
    if corrected <= alpha and found.low > 0:
        outcome = "better"
        words = f"{first} beats {second} by {_amount(found, found.effect)} {_interval(found.low, found.high)}"
    elif corrected <= alpha and found.high < 0:
        outcome = "worse"
        # The same numbers from the other side: of rates b / a - 1 becomes a / b - 1.
        turned = [_turned(found, value) for value in (found.effect, found.high, found.low)]
        words = f"{second} beats {first} by {_amount(found, turned[0])} {_interval(turned[1], turned[2])}"
    else:
        words = f"no difference shown between {first} and {second} at this trace length: "
        words += f"{_amount(found, found.effect)} {_interval(found.low, found.high)}; "
        if found.low > 0 or found.high < 0:
            words += "among so many comparisons that may be chance; "
        if found.more_requests:
            words += f"about {_requests(found.more_requests, 'more')} would show {100 * LEAST_EFFECT:.0f} %"
        else:
            words += f"{100 * LEAST_EFFECT:.0f} % would have shown"
    return replace(found, corrected=corrected, outcome=outcome, verdict=words)


def _turned(found: Comparison, effect: float) -> float:
    return 1 / (1 + effect) - 1 if found.quantity == "tokens/s" else -effect


def _requests(count: int, more: str = "") -> str:
    return f"{count:,} {more + ' ' if more else ''}request{'' if count == 1 else 's'}"


def _amount(found: Comparison, effect: float) -> str:
    sign = "-" if effect < 0 else ""
    named = {"tokens/s": "tokens/s", "p99 time per token": "of the p99 time per token", "bytes loaded": "of the bytes"}
    return f"{sign}{_share(abs(effect))} % {named[found.quantity]}"


def _interval(low: float, high: float) -> str:
    return f"[{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    """A percentage with one digit after the point, or two digits that count."""
    percent = 100 * value
    return f"{percent:.1f}" if abs(percent) >= 0.95 or percent == 0 else f"{percent:.2g}"
