"""Errors are one line, and unknown words come with a suggestion."""

from tracekit.errors import CapacityError, PlanError, TracekitError, did_you_mean


def test_a_message_is_one_line() -> None:
    assert str(TracekitError("first\n  second\r\nthird")) == "first second third"


def test_a_capacity_error_is_a_plan_error() -> None:
    assert issubclass(CapacityError, PlanError)


def test_did_you_mean() -> None:
    choices = ["lru", "lfu-aging", "belady"]
    assert did_you_mean("beladi", choices) == "; did you mean 'belady'?"
    assert did_you_mean("LFU-AGEING", iter(choices)) == "; did you mean 'lfu-aging'?"
    assert did_you_mean("nothing like it", choices) == ""
