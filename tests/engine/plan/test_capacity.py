"""What the words for a capacity mean, and that everything else is refused in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.capacity import Capacity
from tracekit.errors import CapacityError

MIB = 2**20


def groups(text: str, experts: list[int] | None = None, expert_bytes: list[int] | None = None) -> list[int]:
    per_layer = experts or [8, 8, 8]
    return list(Capacity.parse(text).groups(per_layer, max(per_layer), expert_bytes or [])[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4/layer", [4, 4, 4]),
        (" 4 /layer ", [4, 4, 4]),
        ("12", [12]),
        ("0", [0]),
        ("24", [24]),
        ("8/layer", [8, 8, 8]),
        ("25%", [6]),
        ("25%/layer", [2, 2, 2]),
        ("100%", [24]),
        ("0%", [0]),
        ("12.5%/layer", [1, 1, 1]),
        ("13%", [3]),  # 3.12 experts: whole ones
    ],
)
def test_slots_and_shares(text: str, expected: list[int]) -> None:
    assert groups(text) == expected


def test_a_share_of_layers_of_unequal_width() -> None:
    assert groups("50%/layer", [2, 8]) == [1, 4]
    assert groups("50%", [2, 8]) == [5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000MiB", [2000 * MIB]),
        ("1.5GiB", [3 * 2**29]),
        ("10kB", [10_000]),
        ("1MB", [10**6]),
        ("1KiB/layer", [1024] * 3),
        ("7B", [7]),
        ("0.1GB", [10**8]),  # exact: no binary fraction in between
    ],
)
def test_bytes(text: str, expected: list[int]) -> None:
    assert groups(text, expert_bytes=[100, 200, 300]) == expected


def test_sizes_are_in_the_unit_of_the_capacity() -> None:
    assert Capacity.parse("1MiB").groups([2, 2], 2, [100, 300])[1].tolist() == [100, 100, 300, 300]
    assert Capacity.parse("3").groups([2, 2], 2, [100, 300])[1].tolist() == [1, 1, 1, 1]


def test_bytes_need_the_size_of_an_expert() -> None:
    with pytest.raises(CapacityError, match="bytes of an expert are unknown"):
        groups("10MiB")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("25", "the model has only 24"),
        ("9/layer", "a layer has only 8"),
        ("101%", "more than all"),
        ("1.5", "whole number of slots"),
        ("99999999999999999999", "larger than any memory"),
        ("1" + "0" * 30 + "GiB", "larger than any memory"),
        ("", "not understood"),
        ("-1", "not understood"),
        ("4/layers", "not understood"),
        ("auto!", "not understood"),
        ("1e3", "not understood"),
        ("nan", "not understood"),
        ("inf%", "not understood"),
        ("4 slots", "not understood"),
        ("10mib", "not understood"),
        ("٤", "not understood"),
        ("4\n\n/layer;", "not understood"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CapacityError, match=reason) as caught:
        groups(text, expert_bytes=[1, 1, 1])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 60_000 + "MiB", "0." + "9" * 5000 + "%"])
def test_a_number_of_thousands_of_digits_is_refused(text: str) -> None:
    with pytest.raises(CapacityError):
        Capacity.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        capacity = Capacity.parse(text)
    except CapacityError as error:
        assert "\n" not in str(error)
    else:
        assert capacity.amount >= 0
