"""The experts that a profile found popular in the high format, the others in the low one."""

from policies.fields import parameter
from policies.precision.base import TierRule


class PopularHigh(TierRule):
    """Of each layer the `n` experts that the profile's tokens chose most need the high copy, whatever a gate says."""

    name = "popular"
    summary = "the n most popular experts of each layer of a profile in the high format, the others in the low one"
    reads = "nothing"
    needs_profile = True

    n = parameter(8, low=0)

    def low(self, expert: int, share: float, rank: int, popularity: int, high_there: bool, low_there: bool) -> bool:
        return popularity >= self.n
