"""Experts of little weight may be served in the low format."""

from policies.fields import parameter
from policies.precision.base import TierRule


class MissBelow(TierRule):
    """What has less than `threshold` of every token's gate weight takes whichever copy is there, else the low one."""

    name = "miss-below"
    summary = "an expert below a share of the gate weight takes the copy that is there, else the low one"
    source = "after HOBBIT, arXiv 2411.01433"

    threshold = parameter(0.25, low=0.0)

    def low(self, expert: int, share: float, rank: int, popularity: int, high_there: bool, low_there: bool) -> bool:
        return share < self.threshold
