"""Where the next request begins, for caches that start anew there."""

import numpy as np

from tracekit.demand import step_starts
from tracekit.errors import PlanError
from tracekit.trace import Trace


def request_steps(trace: Trace) -> np.ndarray:
    """The running numbers of the steps, but for the first, at which a request begins: i64, ascending.

    Raises PlanError where requests do not follow one another: a cache that several share belongs to none of them.
    """
    starts = step_starts(trace.step)
    if len(starts) < 2:
        return np.empty(0, np.int64)
    owner = trace.request[starts[:-1]]  # [steps]
    changes = np.flatnonzero(np.diff(owner)) + 1
    if (np.repeat(owner, np.diff(starts)) != trace.request).any() or len(np.unique(owner)) != len(changes) + 1:
        raise PlanError(
            f'cache.warm = "reset": the requests of {trace.path} do not follow one another (steps hold several, or '
            "they take turns), so none has the cache for itself; replay without it, or record with --batch-size 1"
        )
    return changes
