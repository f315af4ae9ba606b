"""Several ranges of requests at once: against membership, one request at a time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.edit import Selection
from tracekit.errors import TraceError

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1, max_size=6)


@given(ranges=RANGES, requests=st.lists(st.integers(0, 45), min_size=1, max_size=40))
def test_ranges_and_numbers_are_a_union(ranges: list[tuple[int, int]], requests: list[int]) -> None:
    words = [str(first) if length == 1 else f"{first}:{first + length}" for first, length in ranges]
    count = len(requests)
    trace: Any = SimpleNamespace(tokens=count, request=np.array(requests), step=np.arange(count), phase=np.zeros(count))
    found = Selection(requests=",".join(words)).rows(trace).tolist()
    assert found == [any(a <= request < a + length for a, length in ranges) for request in requests]


@pytest.mark.parametrize("text", ["", "1,", ",1", "a", "1:2:3", "3:1", ":", "1;2", "-1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    trace: Any = SimpleNamespace(tokens=1, request=np.zeros(1), step=np.zeros(1), phase=np.zeros(1))
    with pytest.raises(TraceError, match="--requests is"):
        Selection(requests=text).rows(trace)
