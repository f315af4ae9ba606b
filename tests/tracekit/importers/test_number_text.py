"""Numbers read from JSON text piece by piece, against the JSON parser itself."""

import json
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tracekit.importers.number_text import numbers_in

NUMBERS = st.one_of(st.integers(-99_999, 99_999), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.none())
ROWS = st.lists(st.lists(st.lists(NUMBERS, max_size=3), max_size=3), max_size=4)
TABLES = st.integers(1, 3).flatmap(
    lambda k: st.lists(st.lists(st.lists(st.integers(-9, 70_000), min_size=k, max_size=k), min_size=2, max_size=2))
)


def expected(value: Any) -> np.ndarray | None:
    """The array of a list [n] or [tokens, layers, k] of integers of at most nine digits; None for all else."""
    try:
        array = np.array(value)
    except ValueError:
        return None
    right = array.size > 0 and array.ndim in (1, 3) and array.dtype.kind == "i"
    return array if right and (np.abs(array) < 10**9).all() else None


@given(st.one_of(st.lists(NUMBERS), ROWS, TABLES))
@example([[[3, 2], [3, 5]], [[5, 2], 0.5]])  # behind rows that are alike
@example([[[3, 2], [3, 5]], [[5, 2]]])
@example([1, 2, 1e5])
def test_a_list_is_what_the_parser_makes_of_it_or_left_to_it(value: Any) -> None:
    found, right = numbers_in(memoryview(json.dumps(value).encode())), expected(value)
    assert (found is None) == (right is None)
    assert found is None or right is None or found.tolist() == right.tolist()
