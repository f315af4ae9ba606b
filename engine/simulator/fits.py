"""Times of single pieces of work that the kernel can count; its sums are `engine.simulator.limits`' to check."""

import numpy as np

from engine.simulator.options import MOST_NS
from tracekit.errors import HardwareError


def fitting(field: str, time: int) -> int:
    """`time`, of one piece of work, if the kernel can count it; else HardwareError, naming what makes it so long."""
    if time >= MOST_NS:
        raise HardwareError(
            f"{field}: one piece of work would take {time:.3g} ns or ps, and {MOST_NS:.3g} is the most that can be "
            "counted; correct the hardware profile or the sizes"
        )
    return time


def each(field: str, times: list[int]) -> np.ndarray:
    """Times of each layer, i64, all `fitting`."""
    return np.array([fitting(field, time) for time in times], np.int64)
