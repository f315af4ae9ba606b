"""A modelled speed as it is said to people: with its interval over requests, and that nobody measured it."""

import numpy as np

from experiments.statistics.comparison import rate_intervals
from experiments.statistics.request_shares import RequestShares

MODELLED = "modelled, not measured"
ON_MEASURED = "modelled, on a machine that was measured"
LEVEL = 0.95
Ends = tuple[float, float]


def speed_interval(
    shares: RequestShares, step_ns: np.ndarray, scale: float, *, level: float = LEVEL, warm_up: int = 0
) -> Ends | None:
    """Between which tokens per second the speed lies, were requests drawn anew; None where they are too few to tell.

    `step_ns` [steps] are the times of the trace's steps, `scale` turns them into the model's; the first `warm_up` steps
    do not count.
    """
    counted = shares.step >= warm_up
    tokens = np.bincount(shares.who[counted], minlength=len(shares.tokens))
    own = tokens > 0
    if not own.any():
        return None
    times = shares.of_each(np.where(np.arange(len(step_ns)) < warm_up, 0, step_ns), scale)
    found = rate_intervals(tokens[own], times[own][None].astype(np.float64), level=level)
    return None if found is None else (float(found[0, 0]), float(found[0, 1]))


def basis(*, calibrated: bool) -> str:
    """What a speed in JSON rests on; `calibrated`: the machine was measured, and the engine on it."""
    return ON_MEASURED if calibrated else MODELLED


def interval_words(ends: Ends | None, digits: int = 3) -> str:
    """`[3.101, 3.812]`, or why there is none."""
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "(too few requests for an interval)"
