"""How the simulator's kernel is compiled. numba's own decorator has no type for these options."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., object])
# The kernel allocates nothing: no reference counting, which would cost more than the work.
OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}


def kernel(function: F) -> F:
    """Called from Python: compiled at the first call and kept on disk."""
    made: F = njit(function, cache=True, nogil=True, **OPTIONS)
    return made


def compiled(function: F) -> F:
    """Called from compiled code."""
    made: F = njit(function, **OPTIONS)
    return made


def inlined(function: F) -> F:
    """Compiled into its callers."""
    made: F = njit(function, forceinline=True, **OPTIONS)
    return made
