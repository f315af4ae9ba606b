"""A token's first choices in the high format, the others in the low one."""

from policies.fields import parameter
from policies.precision.base import TierRule


class Rank(TierRule):
    """The heaviest `n` choices of each token need the high copy."""

    name = "rank"
    summary = "each token's n heaviest choices in the high format, the others in the low one unless the high is there"

    n = parameter(1, low=0)

    def low(self, expert: int, share: float, rank: int, popularity: int, high_there: bool, low_there: bool) -> bool:
        return rank >= self.n
