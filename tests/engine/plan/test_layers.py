"""Layers by number, and a capacity in which some have slots of their own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.capacity import Capacity
from engine.plan.layers import parse_layers
from engine.plan.plan import Plan, plan_from_dict, plan_from_toml
from tracekit.errors import CapacityError, PlanError


def groups(text: str, experts: list[int] | None = None) -> list[int]:
    per_layer = experts or [8] * 5
    return list(Capacity.parse(text).groups(per_layer, max(per_layer), [])[0])


@pytest.mark.parametrize(("text", "layers"), [("0", (0,)), ("0-3,7", (0, 1, 2, 3, 7)), (" 1 - 2 , 4 ", (1, 2, 4))])
def test_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, "here") == layers


@pytest.mark.parametrize("text", ["", "3-1", "1,1", "2,1", "0-2,2", "a", "-1", "1,", "9999999", "0-99999", "\u0661"])
def test_what_names_no_layers(text: str) -> None:
    with pytest.raises(PlanError, match=r"here: .*names no layers; write 0-3,7"):
        parse_layers(text, "here")


def test_a_default_and_exceptions() -> None:
    assert groups("6/layer; layers 0-1,4: 2; layers 3: 8") == [2, 2, 6, 8, 2]
    assert groups("50%/layer; layers 1: 0") == [4, 0, 4, 4, 4]


def test_a_list_in_a_plan_is_the_same_as_its_text() -> None:
    text = '[cache]\ncapacity = ["6/layer", {layers = "0-1, 4", slots = 2}, {layers = "3", slots = 8}]\n'
    plan = plan_from_toml(text, "p.toml")
    assert plan.cache.capacity == "6/layer; layers 0-1,4: 2; layers 3: 8"
    assert plan == Plan(["6/layer", {"layers": "0-1,4", "slots": 2}, {"layers": "3", "slots": 8}])
    assert plan_from_toml(plan.to_toml(), "again") == plan
    assert plan.per_layer and not plan.alike


@given(slots=st.integers(0, 8), layers=st.sets(st.integers(0, 4), min_size=1))
def test_exceptions_equal_to_the_default_are_the_default(slots: int, layers: set[int]) -> None:
    words = ",".join(map(str, sorted(layers)))
    assert groups(f"{slots}/layer; layers {words}: {slots}") == groups(f"{slots}/layer")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("6; layers 0: 2", "stand beside slots per layer"),
        ("1MiB/layer; layers 0: 2", "stand beside slots per layer"),
        ("auto; layers 0: 2", "stand beside slots per layer"),
        ("6/layer; 0: 2", "is no exception"),
        ("6/layer; layers 0", "is no exception"),
        ("6/layer; layers 0: 2; layers 0-1: 3", "twice what layer 0"),
        ("6/layer; layers 0: 9", "layer 0 has only 8"),
        ("9/layer; layers 0: 2", "a layer has only 8"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CapacityError, match=reason):
        groups(text)


def test_a_layer_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(PlanError, match="names MoE layer 5, but the model has 5, from 0 to 4"):
        groups("6/layer; layers 4-5: 2")


@pytest.mark.parametrize(
    "given",
    [[], [{"layers": "0", "slots": 1}], ["6/layer", "4/layer"], ["6/layer", {"layers": 0, "slots": 1}],
     ["6/layer", {"layers": "0", "slots": True}], ["6/layer", {"layers": "0", "slots": 1, "x": 2}]],
)  # fmt: skip
def test_a_list_that_is_no_capacity(given: Any) -> None:
    with pytest.raises(PlanError, match=r"p.toml: cache.capacity: .*layers = "):
        plan_from_dict({"cache": {"capacity": given}}, "p.toml")


def test_twice_the_capacity_is_twice_the_exceptions() -> None:
    capacity = Capacity.parse("2/layer; layers 0: 3; layers 2: 5")
    assert capacity.times(capacity.amount, [8] * 5) == "4/layer; layers 0: 6; layers 2: 8"
