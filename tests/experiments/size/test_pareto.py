"""Nothing in the set is bettered by what is known, and everything outside is."""

from hypothesis import given
from hypothesis import strategies as st

from experiments.size.pareto import BEST, BETTERED, OPEN, pareto

FIGURE = st.one_of(st.none(), st.integers(0, 3).map(float))


@given(st.lists(st.tuples(FIGURE, FIGURE, FIGURE), max_size=8))
def test_as_said(figures: list[tuple[float | None, ...]]) -> None:
    found = pareto(figures)
    for one, word in zip(figures, found, strict=True):
        if None in one:
            assert word == OPEN
            continue
        betters = [
            other
            for other in figures
            if None not in other
            and sum(a < b for a, b in zip(other, one, strict=True)) > 0  # type: ignore[operator]
            and not sum(a > b for a, b in zip(other, one, strict=True))  # type: ignore[operator]
        ]
        assert word == (BETTERED if betters else BEST)


def test_equals_are_both_in_it() -> None:
    assert pareto([(1, 2), (1, 2), (2, 2)]) == [BEST, BEST, BETTERED]
