"""Timing two things fairly: alternating, several times, medians."""

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


def medians(first: Callable[[], object], second: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of each, measured in turns, so that a drift of the machine's speed falls on both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for seconds, action in zip(times, (first, second), strict=True):
            start = perf_counter()
            action()
            seconds.append(perf_counter() - start)
    return median(times[0]), median(times[1])
