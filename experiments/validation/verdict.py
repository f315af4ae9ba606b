"""The verdict of a validation: decisions and tokens are right or wrong, time is near enough or not, and why.

Failed: decisions or tokens differ, or time is off by more than the threshold, and not by what may be the machine's
noise. Passed with a warning: all of that is right, and time is off by more than the tolerance. Time is off by the
larger of two errors: of tokens per second, and of a decode step in the median. Where the engine was run several times,
its own spread tells whether such an error may be the machine's noise.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy.special import stdtrit

from tracekit.errors import ModelError

Outcome = Literal["passed", "warned", "failed"]
Cause = Literal["model", "noise", "unknown"]
TOLERANCE = 0.15
THRESHOLD = 0.5
"""What `tracekit validate` fails above: then the profile is of another machine, or the model of it is wrong."""
RUNS = 3
"""Times that the engine runs; a machine that is measured for it is measured before and after them."""
WORDS: dict[Outcome, str] = {"passed": "passed", "warned": "passed with a warning", "failed": "FAILED"}


class TimeError(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated against measured time of decode steps, in milliseconds and as a share of the measured time.

    The time of a step, or of a visit, is the median over the runs of its side.

    `step_error_median` is the median over decode steps of |simulated - measured| / measured; `total_error` the signed
    error of their sum, `tokens_per_second_error` and `p99_error` of these. `layer_error_median` is the same as the
    first, over visits. `measured_runs` and `simulated_runs` are tokens per second of each run of the engine, and of the
    simulator with each profile that was measured here.
    """

    hardware: str
    engine: str | None = None
    """Of the profile; None in files of before engines had a name."""
    calibrated_here: bool
    emulated_link: str | None
    steps: int
    measured_tokens_per_second: float
    simulated_tokens_per_second: float
    tokens_per_second_error: float
    measured_p99_ms: float
    simulated_p99_ms: float
    p99_error: float
    step_error_median: float
    layer_error_median: float
    total_error: float
    measured_step_ms: list[float]
    simulated_step_ms: list[float]
    measured_runs: list[float] = []
    simulated_runs: list[float] = []

    @property
    def off(self) -> float:
        """How far time is off, as verdicts see it: a share."""
        return max(self.step_error_median, abs(self.tokens_per_second_error))


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How far repeated runs of one side are apart: (highest - lowest) / median of tokens per second."""

    runs: int
    share: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`cause`: where an error beyond the tolerance comes from, as far as repeated runs tell; None: there is none."""

    outcome: Outcome
    tolerance: float
    off: float
    cause: Cause | None
    measured_spread: Spread | None
    simulated_spread: Spread | None


def judge(*, identical: bool, time: TimeError, tolerance: float = TOLERANCE, threshold: float | None = None) -> Verdict:
    """The verdict; `identical`: decisions and tokens are right. `threshold` fails what is further off; None none."""
    measured, simulated = spread(time.measured_runs), spread(time.simulated_runs)
    beyond = threshold is not None and time.off > threshold
    cause: Cause | None = None
    if time.off > tolerance or beyond:
        cause = "unknown" if measured is None else "noise" if _covered(time) else "model"
    outcome: Outcome = "passed" if cause is None else "warned"
    if not identical or (beyond and cause != "noise"):
        outcome = "failed"
    return Verdict(
        outcome=outcome,
        tolerance=tolerance,
        off=time.off,
        cause=cause,
        measured_spread=measured,
        simulated_spread=simulated,
    )


def spread(runs: Sequence[float]) -> Spread | None:
    """The spread of runs; None of fewer than two."""
    if len(runs) < 2:
        return None
    ordered = sorted(runs)
    middle = (ordered[(len(runs) - 1) // 2] + ordered[len(runs) // 2]) / 2
    return Spread(runs=len(runs), share=(ordered[-1] - ordered[0]) / middle)


def time_words(time: TimeError, verdict: Verdict, threshold: float | None = None) -> str:
    """The three errors of time, what they are held against, and where they come from."""
    words = (
        f"tokens/s off by {signed(time.tokens_per_second_error)}, p99 of a token by {signed(time.p99_error)}, "
        f"a token by {100 * time.step_error_median:.1f} % in the median"
    )
    if threshold is not None and time.off > threshold:
        words += f", ABOVE the allowed {100 * threshold:g} %"
    elif verdict.off > verdict.tolerance:
        words += f", above the tolerance of {100 * verdict.tolerance:g} %"
    else:
        words += f", within {100 * (verdict.tolerance if threshold is None else threshold):g} %"
    if (said := spread_words(verdict)) is not None:
        words += f"; {said}"
    return words


def spread_words(verdict: Verdict) -> str | None:
    """How far runs are apart, and what follows; None where nothing was repeated and nothing is off."""
    parts = []
    for found, whose in ((verdict.measured_spread, "the engine's"), (verdict.simulated_spread, "the simulator's")):
        if found is not None:
            parts.append(f"{whose} {found.runs} runs are {100 * found.share:.1f} % apart")
    told: dict[Cause, str] = {
        "model": "so it is the model's error, not the machine's noise",
        "noise": "so it may be the machine's noise",
        "unknown": "the engine ran once, so the machine's noise is in it",
    }
    if verdict.cause is not None:
        parts.append(told[verdict.cause])
    return ", ".join(parts) or None


def signed(share: float) -> str:
    """`-0.021` as `-2.1 %`."""
    return f"{100 * share:+.1f} %"


def check_tolerance(tolerance: float) -> None:
    """Raises ModelError for a tolerance that is no share."""
    if not 0 < tolerance < float("inf"):
        raise ModelError(f"a tolerance of {tolerance:g} tells nothing: give a share above 0, such as 0.15")


def check_runs(runs: int) -> None:
    """Raises ModelError for fewer than one."""
    if runs < 1:
        raise ModelError(f"{runs} runs measure nothing: give at least 1")


def _covered(time: TimeError) -> bool:
    """Whether the two sides' runs are no further apart than chance allows: Student's t of log rates, at 95 %.

    Three runs know little of their own spread; that the lowest of one side is above the highest of the other is not
    enough to blame the model.
    """
    sides = [np.log(time.measured_runs), np.log(time.simulated_runs or [time.simulated_tokens_per_second])]
    degrees = sum(len(side) - 1 for side in sides)
    pooled = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / degrees
    width = float(stdtrit(degrees, 0.975)) * (pooled * sum(1 / len(side) for side in sides)) ** 0.5
    return bool(abs(sides[0].mean() - sides[1].mean()) <= width)
