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


def test_what_strangers_wrote_is_spelled_out() -> None:
    """A terminal obeys nothing in a message, whatever was quoted in it."""
    assert str(TracekitError("a\x1b[2J\x07 \u202eb \ud800")) == r"a\x1b[2J\x07 \u202eb \ud800"
    assert str(TracekitError("Größe 5 µs, 32 °C")) == "Größe 5 µs, 32 °C"


def test_quotes_and_messages_have_an_end() -> None:
    """A word of many characters is cut in its middle; so is what is said as a whole."""
    said = str(TracekitError(f"model {'x' * 10_000} has no config.json"))
    assert said.startswith("model xxx") and said.endswith("xxx has no config.json") and len(said) < 230
    assert len(str(TracekitError("word " * 1000))) <= 1000
