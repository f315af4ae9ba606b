"""Which of several machines nothing betters, as far as is known."""

from collections.abc import Sequence

BEST, OPEN, BETTERED = "best", "open", "bettered"
"""Nothing known betters it; something of it is not known; another is no worse in anything, and better in something."""


def pareto(figures: Sequence[Sequence[float | None]]) -> list[str]:
    """BEST, OPEN or BETTERED for each; of every figure less is better.

    One of which anything is not known is OPEN: it cannot be shown to be bettered, and betters nothing.
    """
    known = [[float(value) for value in one if value is not None] for one in figures]
    whole = [len(one) == len(given) for one, given in zip(known, figures, strict=True)]

    def bettered(mine: list[float]) -> bool:
        return any(
            known_wholly and all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other, known_wholly in zip(known, whole, strict=True)
        )

    return [
        OPEN if not known_wholly else BETTERED if bettered(one) else BEST
        for one, known_wholly in zip(known, whole, strict=True)
    ]
