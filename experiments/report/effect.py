"""An effect: what one plan gains on the baseline at one cache size, with its interval."""

import math
from dataclasses import dataclass

from tracekit.errors import StudyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one plan gains on the baseline with as large a cache: `effect` a share, or `points` of hit ratio.

    `policy` is its eviction, as rows name it, `label` its prefetching, too. `low` and `high` are missing where requests
    are too few. `effective` of `requests` tell: as many equal ones that differ would tell as much.
    """

    policy: str
    label: str
    cache: str
    effect: float
    low: float | None
    high: float | None
    points: bool
    requests: int
    effective: float
    outcome: str
    is_bound: bool = False

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (self.effect, self.low, self.high) if value is not None):
            raise StudyError(f"effect of {self.label!r} at {self.cache!r}: it and its interval must be numbers")
