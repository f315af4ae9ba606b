"""Timing things fairly: in turns, several times, medians."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio` is ours to peer, as `what` says; `target` the figure to reach."""

    what: str
    ours: str
    peer: str
    ratio: float
    target: str

    @classmethod
    def of_rates(cls, what: str, ours: float, peer: float, target: str) -> "Row":
        """Two rates, per second."""
        return cls(what, _per_second(ours), _per_second(peer), ours / peer, target)


def in_turns(*actions: Callable[[], object], repeats: int, uncounted: int = 0) -> list[list[float]]:
    """Seconds of each action, measured in turns, so that a drift of the machine's speed falls on all alike.

    The first `uncounted` turns come on top and are not told.
    """
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(uncounted + repeats):
        for seconds, action in zip(times, actions, strict=True):
            start = perf_counter()
            action()
            if turn >= uncounted:
                seconds.append(perf_counter() - start)
    return times


def medians(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 5, uncounted: int = 0
) -> tuple[float, float]:
    """Median seconds of each, measured in turns."""
    ours, peer = in_turns(first, second, repeats=repeats, uncounted=uncounted)
    return median(ours), median(peer)


def _per_second(rate: float) -> str:
    return f"{rate / 1e6:.3g} M/s" if rate >= 1e6 else f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"
