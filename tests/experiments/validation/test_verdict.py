"""The verdict on a validation: what fails, what warns, and whether repeated runs blame the model or the machine."""

from typing import Any

import msgspec
import pytest

from engine.hardware import load_hardware
from experiments.validation.emulated import over_link
from experiments.validation.verdict import THRESHOLD, TimeError, judge, spread, time_words
from tracekit.errors import ModelError

pytest.importorskip("torch")

from engine.runtime.links.thread_link import EmulatedLink  # needs torch
from experiments.validation.verdict import check_tolerance


def timed(**changes: Any) -> TimeError:
    """A simulation that is 10 % too fast, on an engine that made 100 tokens/s."""
    time = TimeError(
        hardware="t4",
        calibrated_here=True,
        emulated_link=None,
        steps=3,
        measured_tokens_per_second=100.0,
        simulated_tokens_per_second=110.0,
        tokens_per_second_error=0.1,
        measured_p99_ms=12.0,
        simulated_p99_ms=9.0,
        p99_error=-0.25,
        step_error_median=0.08,
        layer_error_median=0.1,
        total_error=1 / 1.1 - 1,
        measured_step_ms=[10.0, 10.0, 10.0],
        simulated_step_ms=[9.1, 9.1, 9.1],
        measured_runs=[100.0],
        simulated_runs=[110.0],
    )
    return msgspec.structs.replace(time, **changes)


def test_time_alone_warns_and_a_difference_fails() -> None:
    assert judge(identical=True, time=timed()).outcome == "passed"
    assert judge(identical=False, time=timed()).outcome == "failed"
    found = judge(identical=True, time=timed(), tolerance=0.09)
    assert found.outcome == "warned" and found.off == 0.1  # tokens/s are further off than the median
    assert judge(identical=True, time=timed(step_error_median=0.2)).outcome == "warned"
    assert judge(identical=True, time=timed(step_error_median=0.2), threshold=0.3).outcome == "warned"
    assert judge(identical=True, time=timed(step_error_median=0.2), tolerance=0.5, threshold=0.1).outcome == "failed"
    far = timed(tokens_per_second_error=-0.78)
    failed = judge(identical=True, time=far, threshold=THRESHOLD)
    assert failed.outcome == "failed" and "ABOVE the allowed 50 %" in time_words(far, failed, THRESHOLD)
    near = timed(tokens_per_second_error=-0.45)
    assert judge(identical=True, time=near, threshold=THRESHOLD).outcome == "warned"
    assert judge(identical=True, time=far).outcome == "warned", "nobody set a threshold"


@pytest.mark.parametrize(
    ("measured", "simulated", "cause", "said"),
    [
        ([100.0], [140.0], "unknown", "the engine ran once, so the machine's noise is in it"),
        ([100.0, 98.0, 101.0], [140.0], "model", "3 runs are 3.0 % apart, so it is the model's error"),
        ([100.0, 98.0, 141.0], [140.0], "noise", "43.0 % apart, so it may be the machine's noise"),
        ([100.0, 99.0], [140.0, 98.0], "noise", "the simulator's 2 runs are 35.3 % apart"),
        # No run is as fast as the simulator, but three so far apart say little of a fourth.
        ([100.0, 85.0, 130.0], [131.0, 132.0], "noise", "the engine's 3 runs are 45.0 % apart"),
        ([100.0, 99.0], [140.0, 150.0], "model", "the simulator's 2 runs are 6.9 % apart"),
    ],
)
def test_repeated_runs_tell_noise_from_error(
    measured: list[float], simulated: list[float], cause: str, said: str
) -> None:
    time = timed(tokens_per_second_error=0.4, measured_runs=measured, simulated_runs=simulated)
    found = judge(identical=True, time=time)
    assert (found.outcome, found.cause) == ("warned", cause)
    words = time_words(time, found)
    assert said in words and "above the tolerance of 15 %" in words
    assert words.startswith("tokens/s off by +40.0 %, p99 of a token by -25.0 %, a token by 8.0 % in the median")


def test_where_nothing_is_off_nobody_is_blamed() -> None:
    time = timed(measured_runs=[100.0, 90.0])
    found = judge(identical=True, time=time)
    assert found.cause is None and found.measured_spread == spread([90.0, 100.0])
    assert time_words(time, found).endswith("within 15 %; the engine's 2 runs are 10.5 % apart")


def test_a_tolerance_is_a_share() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ModelError, match="tells nothing"):
            check_tolerance(wrong)


def test_both_sides_go_over_the_emulated_link() -> None:
    profile = load_hardware("rtx3060")
    assert over_link(profile, None) is profile
    slow = over_link(profile, EmulatedLink(2e9, latency_ns=10**6)).link
    assert slow.host_to_device_bytes_per_s == 2 * 10**9 and slow.latency_ns == 10**6
    assert all(rate.bytes_per_s <= 2 * 10**9 for rate in slow.rates)
    fast = over_link(profile, EmulatedLink(1e15)).link
    assert fast == profile.link
