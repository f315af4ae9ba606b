"""Measuring until it is known: samples are taken in turns until each median's interval is narrow, or to a limit."""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

WIDTH = 0.05
"""A median counts as known when its 95 % interval is no wider than this share of it, each way."""
MOST = 4
"""How many times as many samples as asked for are taken before a spread is taken for the machine's nature."""


def repeated(
    turn: Callable[[int], Sequence[float]], least: int, *, warm_up: int = 1, most: int = MOST, width: float = WIDTH
) -> list[list[float]]:
    """Samples of several things: `turn(number)` takes one of each, so that a drift of the machine falls on all alike.

    At least `least` turns, and then until every median is known within `width`, or `most * least` turns are over.
    """
    for number in range(warm_up):
        turn(number)
    taken: list[Sequence[float]] = []
    while len(taken) < least or (
        len(taken) < most * least and any(margin(each) > width for each in zip(*taken, strict=True))
    ):
        taken.append(turn(warm_up + len(taken)))
    return [list(each) for each in zip(*taken, strict=True)]


def margin(samples: Sequence[float]) -> float:
    """Half the width of the median's 95 % interval, as a share of the median; of fewer than six samples their range.

    The interval is between two of the samples, by order alone (Conover 1999, 3.2): whatever the distribution.
    """
    ordered = np.sort(np.asarray(samples, float))
    outside = rank(len(ordered))
    middle = float(np.median(ordered))
    return float(ordered[-1 - outside] - ordered[outside]) / 2 / max(abs(middle), 1.0)


def rank(count: int) -> int:
    """How many samples lie below the median's 95 % interval, and above: the most that leave it 95 %."""
    found, below = -1, 0
    while 40 * (below := below + comb(count, found + 1)) <= 2**count:  # a share of 0.025 on each side
        found += 1
    return max(found, 0)


def ascending(values: Sequence[float]) -> list[float]:
    """The ascending sequence nearest to `values` by least squares: neighbours in the wrong order are pooled."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (low, few), (high, more) = pools.pop(), pools.pop()
            pools.append(((low * few + high * more) / (few + more), few + more))
    return [value for value, count in pools for _ in range(count)]
