"""The roofline of one expert: a unit reads its weights and computes its tokens, and takes the longer of the two.

Williams, Waterman & Patterson 2009, CACM 52(4). The simulator's costs and the engine's CPU lane both ask here, so they
cannot drift apart.
"""

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np

Amount = TypeVar("Amount", int, "np.ndarray")
SECOND = 10**9
"""Nanoseconds."""


class Roofline(NamedTuple):
    """What one expert takes on one unit, whatever the number of its tokens."""

    read_ns: int
    """Its weights read, as the arithmetic wants them."""
    token_ps: int
    """Arithmetic of one token, in picoseconds."""
    expand_ns: int
    """Its weights expanded, where they are stored in fewer bits than the arithmetic wants."""
    fixed_ns: int
    """Launching it, or carrying activations there and back."""

    def ns(self, tokens: int) -> int:
        """Nanoseconds with so many tokens, rounded down."""
        return max(self.read_ns, tokens * self.token_ps // 1000) + self.expand_ns + self.fixed_ns


def ceil_ns(amount: Amount, per_second: int) -> Amount:
    """Nanoseconds in which so much is done at a rate, rounded up; of arrays of Python's integers, of each."""
    return -(-amount * SECOND // per_second)


def token_ps(params: int, flops_per_s: int) -> int:
    """Picoseconds of one token's arithmetic in a matrix of so many parameters: a multiply-add each, rounded up."""
    return -(-2 * params * 1000 * SECOND // flops_per_s)
