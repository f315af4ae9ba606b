"""The contract of a tier rule: which copy of a demanded expert a visit needs, where each has two."""

from typing import ClassVar

from policies.fields import Policy


class TierRule(Policy):
    """Says of each demanded expert whether its low copy will do.

    Where it will, a resident high copy serves all the same, and is preferred; only where neither is there, the low copy
    is loaded. Where it will not, the high copy is needed, even if the low one is there. A visit uses one copy of an
    expert: a rule is asked once for all of the visit's tokens, with the most that any of them wants.

    `reads` declares whether it needs "gate-weight"s; a rule that `needs_profile` is told how popular experts were.
    """

    READABLE: ClassVar[tuple[str, ...]] = ("nothing", "gate-weight")
    reads: ClassVar[str] = "gate-weight"
    needs_profile: ClassVar[bool] = False

    def low(self, expert: int, share: float, rank: int, popularity: int, high_there: bool, low_there: bool) -> bool:
        """Whether the low copy of `expert` (a key) will do.

        share: the largest share that the expert has of the gate weight of a token of the visit, 0 to 1.
        rank: its best place among the choices of such a token, 0 the heaviest.
        popularity: its place among its layer's experts in the profile, 0 the most chosen; -1 without one.
        high_there, low_there: the copies on the device before the visit.
        """
        return False
