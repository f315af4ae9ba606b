"""How far the simulator's kernel counts, and how it is compiled; numba's decorator has no type for these options."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

MOST_NS = 1 << 61
"""No clock of the kernel reaches it: half of what it takes for "later than anything"."""
F = TypeVar("F", bound=Callable[..., object])
# The kernel allocates nothing: no reference counting, which would cost more than the work.
OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}


def compiled(*, inline: bool = False, kept: bool = False) -> Callable[[F], F]:
    """For compiled callers, into which it goes with `inline`; for Python if `kept`: compiled once, then from disk."""
    made: Callable[[F], F] = njit(forceinline=inline, cache=kept, nogil=kept, **OPTIONS)
    return made
