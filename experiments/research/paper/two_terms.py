"""The two-term model: a token takes a fixed overhead and the time its expert loads take on the link, one after another.

    seconds per token = overhead + loads * expert bytes / link

Pre-loading hides what the overhead is long enough to hide (`preloaded_seconds`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.research.paper.published import EXPERTS, LAYERS, TOP_K, Row
from tracekit.errors import StudyError


@dataclass(frozen=True, slots=True)
class TwoTerms:
    """A machine: effective link rate in bytes per second, fixed overhead in seconds per token."""

    link: float
    overhead: float

    def seconds(self, loads: float, expert_bytes: float) -> float:
        """Seconds per token with `loads` loads of `expert_bytes` each and no overlap."""
        return self.overhead + loads * expert_bytes / self.link


def fit(bytes_per_token: Sequence[float], seconds_per_token: Sequence[float]) -> TwoTerms:
    """The link and overhead that least squares gives for measured rows; exact for two rows.

    Raises StudyError when the rows do not determine a machine: fewer than two different loads, or a time that falls
    as loads grow.
    """
    size, time = np.asarray(bytes_per_token, float), np.asarray(seconds_per_token, float)
    if len(size) != len(time) or len(size) < 2 or np.ptp(size) == 0:
        raise StudyError("a fit needs at least two rows that load different numbers of bytes")
    slope = float(np.sum((size - size.mean()) * (time - time.mean())) / np.sum((size - size.mean()) ** 2))
    if slope <= 0:
        raise StudyError("time does not grow with the bytes loaded: no link has such a rate")
    return TwoTerms(link=1 / slope, overhead=float(time.mean() - slope * size.mean()))


def loads_per_token(row: Row, hit_ratio: float) -> float:
    """Experts loaded per token without pre-loading: misses, all that are chosen, or every expert of every layer."""
    return {
        "full": LAYERS * TOP_K * (1 - hit_ratio),
        "no-preload": LAYERS * TOP_K * (1 - hit_ratio),
        "no-cache": float(LAYERS * TOP_K),
        "naive": float(LAYERS * EXPERTS),
    }[row]


def preloaded_seconds(
    terms: TwoTerms, expert_bytes: float, *, hit_ratio: float, cache: int, guesses: int, recall: float
) -> float:
    """Seconds per token of the full algorithm: LRU cache and `guesses` guessed experts of the next layer.

    Mean values per layer. Guesses that are not cached are copied while the next layer's overhead passes; misses that
    were not guessed are copied after the gate, as without pre-loading. Copies that the overhead cannot hide, wrong
    guesses included, hold up the next layer. A guess is right or wrong whether or not the expert is cached.
    """
    copy = expert_bytes / terms.link
    missing = TOP_K * (1 - hit_ratio)
    wrong = guesses - TOP_K * recall
    idle_residents = cache - TOP_K * hit_ratio  # cached experts that the visit does not need
    wasted = wrong * (1 - idle_residents / (EXPERTS - TOP_K))
    ahead = (missing * recall + wasted) * copy
    layer = max(terms.overhead / LAYERS, ahead) + missing * (1 - recall) * copy
    return LAYERS * layer


def largest_hit_ratio(no_cache: float, no_preload: float, full: float) -> float:
    """The highest hit ratio at which hiding every transfer explains the full row; arguments are seconds per token.

    The overhead is what is left of the row without cache when all its loads are taken off, and these are the
    difference of the first two rows over the hit ratio: the higher it is, the larger the overhead.
    """
    return (no_cache - no_preload) / (no_cache - full)
