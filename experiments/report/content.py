"""What a report says, as plain frozen data: no formatting, no drawing, no knowledge of where it came from.

Ratios and shares are 0 to 1, rates are decode tokens per second, sizes are bytes, times are milliseconds. Every
class refuses numbers that could not be drawn (StudyError), so the page never shows a NaN.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.report.effect import Effect
from tracekit.errors import StudyError


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """One plan and what became of it: a row of the table and a bar of the chart.

    `hits_prefetched` is the share of all hits that a prefetch brought. `bound_tokens_per_second` is what no
    policy can beat with this row's capacity on this machine. `is_bound` marks rows that need the future, as
    Belady does. `low` to `high` is the interval of `tokens_per_second`. `fates` counts prefetches that were there in
    time, late, and wasted. None means unknown (no hardware given, no decode steps, expert sizes unknown). `weights`,
    `kernels` and `lane` say how experts are stored and computed, `routing` what alters the gates' choices, where that
    is not as usual: then its figures are first-order estimates, and there is no bound. `loss` is what it costs in
    quality, as a share, between `loss_low` and `loss_high`.
    """

    name: str
    capacity: str
    prefetch: str
    weights: str = ""
    kernels: str = ""
    lane: str = ""
    hit_ratio: float
    decode_hit_ratio: float | None
    hits_prefetched: float
    tokens_per_second: float | None
    bound_tokens_per_second: float | None
    bytes_loaded_per_token: float | None
    routing: str = ""
    is_bound: bool = False
    low: float | None = None
    high: float | None = None
    device_bytes: float | None = None
    fates: tuple[int, int, int] | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None

    def __post_init__(self) -> None:
        _named("a policy row", self.name)
        for name in ("hit_ratio", "decode_hit_ratio", "hits_prefetched"):
            _within(f"policy row {self.name!r}", name, getattr(self, name), 1.0)
        rates = ("tokens_per_second", "bound_tokens_per_second", "low", "high")
        for name in (*rates, "bytes_loaded_per_token", "device_bytes"):
            _within(f"policy row {self.name!r}", name, getattr(self, name))
        for name in ("loss", "loss_low", "loss_high"):  # by chance a format may gain
            _within(f"policy row {self.name!r}", name, None if (loss := getattr(self, name)) is None else abs(loss))

    @property
    def parts(self) -> dict[str, str]:
        """What its name is made of (`experiments.report.labels`)."""
        prefetch = "" if self.prefetch == "none" else self.prefetch
        parts = {"name": self.name, "capacity": self.capacity, "prefetch": prefetch}
        return parts | {"routing": self.routing, "weights": self.weights, "kernels": self.kernels, "lane": self.lane}

    @property
    def share_of_bound(self) -> float | None:
        """How much of the bound is reached; None where one of them is unknown."""
        speed, bound = self.tokens_per_second, self.bound_tokens_per_second
        return speed / bound if speed is not None and bound else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One cache size of one policy's hit-ratio curve; `capacity` is how one asks for it ("8/layer").

    `low` to `high` is the interval of the hit ratio, where there is one.
    """

    policy: str
    capacity: str
    share_held: float
    hit_ratio: float
    is_bound: bool = False
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _named("a curve point", self.policy)
        where = f"curve of {self.policy!r} at {self.capacity!r}"
        _within(where, "share_held", self.share_held, 1.0)
        for name in ("hit_ratio", "low", "high"):
            _within(where, name, getattr(self, name), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatMap:
    """Which experts one model uses.

    `shares` [layers, experts]: each expert's share of its layer's lookups; NaN where a layer has no such
    expert.
    `layers`: the model-layer index of each row; empty numbers the rows from 0.
    """

    model: str
    shares: NDArray[np.floating]
    layers: tuple[int, ...] = ()
    again: str = ""

    def __post_init__(self) -> None:
        _named("a heat map", self.model)
        where = f"heat map of {self.model!r}"
        if self.shares.ndim != 2 or 0 in self.shares.shape:
            raise StudyError(f"{where}: shares must be [layers, experts], not of shape {self.shares.shape}")
        known = self.shares[~np.isnan(self.shares)]
        if ((known < 0) | (known > 1)).any():
            raise StudyError(f"{where}: a share lies outside 0 to 1")
        if self.layers and len(self.layers) != len(self.shares):
            raise StudyError(f"{where}: {len(self.layers)} layer numbers for {len(self.shares)} rows")
        if len(set(self.layers)) != len(self.layers):
            raise StudyError(f"{where}: a layer number occurs twice")

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The model-layer index of each row."""
        return self.layers or tuple(range(len(self.shares)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One plan run on the engine and on the simulator.

    `tokens_identical` compares generated tokens with the un-offloaded model's; None when none were compared.
    `time_error_median` is the median of |simulated / measured - 1| over decode steps, `time_error_limit` what
    was allowed, `tolerance` what passes without a warning; errors of tokens per second and of p99 are signed.
    `simulated_ms` and `measured_ms` hold one time for each decode step, in the same order, `simulated_runs` and
    `measured_runs` the tokens per second of repeated runs; `spread` says how far these are apart.
    """

    outcome: Literal["passed", "warned", "failed"]

    decisions_identical: bool
    decisions: int
    tokens_identical: bool | None
    tokens: int
    time_error_median: float
    time_error_limit: float | None
    simulated_tokens_per_second: float
    measured_tokens_per_second: float
    tolerance: float
    tokens_per_second_error: float
    p99_error: float
    spread: str = ""
    simulated_ms: tuple[float, ...] = ()
    measured_ms: tuple[float, ...] = ()
    simulated_runs: tuple[float, ...] = ()
    measured_runs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = "validation"
        for name in ("time_error_median", "time_error_limit", "tolerance"):
            _within(where, name, getattr(self, name))
        for name in ("simulated_tokens_per_second", "measured_tokens_per_second"):
            _within(where, name, getattr(self, name))
        if len(self.simulated_ms) != len(self.measured_ms):
            raise StudyError(
                f"{where}: {len(self.simulated_ms)} simulated steps for {len(self.measured_ms)} measured ones"
            )
        for time in (*self.simulated_ms, *self.measured_ms):
            _within(where, "a step's time", time)
        for rate in (*self.simulated_runs, *self.measured_runs):
            _within(where, "a run's tokens per second", rate)
        if not (math.isfinite(self.tokens_per_second_error) and math.isfinite(self.p99_error)):
            raise StudyError(f"{where}: errors must be numbers")

    @property
    def late(self) -> float:
        """How far time is off, as the verdict sees it."""
        return max(self.time_error_median, abs(self.tokens_per_second_error))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretRow:
    """Why a step of one plan takes longer than computing alone: milliseconds by cause, which may be negative.

    `alike`: what all rows beside it have in common, too, so that their labels do not say it.
    """

    label: str
    parts: tuple[tuple[str, float], ...]
    policy: str = ""
    alike: str = ""

    def __post_init__(self) -> None:
        _named("a regret row", self.label)
        if not all(math.isfinite(value) for _, value in self.parts):
            raise StudyError(f"regret of {self.label!r}: every part must be a number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """One of a machine's best plans: what the objective asks for (`value`), and how it stands against the winner.

    `within` is the interval of `value`, in words. `sure`: it was shown to be worse; False: level with the winner, or
    not told apart; None: not compared. `loss`: of quality, in words.
    """

    label: str
    value: float
    within: str = ""
    device_bytes: float | None = None
    share_of_bound: float | None = None
    against: str = ""
    sure: bool | None = None
    loss: str = ""

    def __post_init__(self) -> None:
        _named("a best plan", self.label)
        for name in ("value", "device_bytes", "share_of_bound"):
            _within(f"best plan {self.label!r}", name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class BetterRow:
    """How fast one plan is `now`, and would be if one thing of its machine were so much better: speeds by what."""

    label: str
    now: float
    better: tuple[tuple[str, float, float], ...]
    policy: str = ""

    def __post_init__(self) -> None:
        _named("a sensitivity row", self.label)
        for speed in (self.now, *(speed for _, _, speed in self.better)):
            _within(f"sensitivities of {self.label!r}", "tokens per second", speed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A comparison in words; `shown` if it shows a difference."""

    text: str
    shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRound:
    """What a search made of the plans on a beginning of the traces: `share` of their decode steps."""

    share: float
    plans: int
    kept: int
    pruned: int
    too_large: int
    failed: int
    last_kept: str
    first_pruned: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A bar of a token's timeline: what ran in which lane, in milliseconds; `label` an expert or a wait's cause."""

    lane: str
    kind: str
    label: str
    layer: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTimeline:
    """One decode step under one plan, or its first layers."""

    title: str
    bars: tuple[Work, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a study found on one machine: who won (`statement`), how sure that is (`verdict`), and every plan's row.

    `best` are the best plans, the winner first, by `unit`; `alike` is what these have in common.
    `modelled`: the objective is a time on a machine that nobody measured.
    `room` is how many bytes of the device plans may take, `most_loss` the share of quality that they may lose. `again`
    says how to make a figure again, by the figure's kind: "speed", "memory", "quality", "fates", "regret", "timeline".
    `effects` are against `baseline`; `answers`: the same, a sentence for each policy.
    """

    title: str
    statement: str = ""
    verdict: str = ""
    best: tuple[Best, ...] = ()
    unit: str = ""
    modelled: bool = False
    alike: str = ""
    ranking: tuple[str, ...] = ()
    baseline: str = ""
    answers: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    room: float | None = None
    most_loss: float | None = None
    rows: tuple[PolicyRow, ...] = ()
    regrets: tuple[RegretRow, ...] = ()
    better: tuple[BetterRow, ...] = ()
    search: tuple[SearchRound, ...] = ()
    timeline: TokenTimeline | None = None
    again: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _named("a setting", self.title)

    def fits(self, row: PolicyRow) -> bool:
        """Whether a plan takes no more of the device than there is, as far as its size is known."""
        return self.room is None or row.device_bytes is None or row.device_bytes <= self.room

    def may_win(self, row: PolicyRow) -> bool:
        """Whether a plan fits and is known to lose no more quality than is allowed, where a limit is set."""
        kept = self.most_loss is None or (row.loss is not None and row.loss <= self.most_loss)
        return kept and self.fits(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSet:
    """The hit-ratio curves of one trace."""

    title: str
    points: tuple[CurvePoint, ...]
    again: str = ""

    def __post_init__(self) -> None:
        _distinct(self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything on the page, in reading order; what is empty is left out.

    `subtitle` is (what, which) pairs, as ("model", "mistralai/Mixtral-8x7B-v0.1"). `modelled`: the times of `rows` are
    of a machine that nobody measured. `reproduce` holds shell commands.
    """

    title: str
    subtitle: tuple[tuple[str, str], ...] = ()
    rows: tuple[PolicyRow, ...] = ()
    modelled: bool = False
    settings: tuple[Setting, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    curve_sets: tuple[CurveSet, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()
    validation: Validation | None = None
    warnings: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _named("a report", self.title)
        _distinct(self.curves)

    def policies(self) -> dict[str, bool]:
        """Every policy named anywhere, in order of appearance, and whether it is a bound."""
        found: dict[str, bool] = {}
        for point in (*self.curves, *(point for drawn in self.curve_sets for point in drawn.points)):
            found.setdefault(point.policy, point.is_bound)
        for row in (*self.rows, *(row for setting in self.settings for row in setting.rows)):
            found.setdefault(row.name, row.is_bound)
        return found


def _distinct(points: Iterable[CurvePoint]) -> None:
    seen: set[tuple[str, float]] = set()
    for point in points:
        if (place := (point.policy, point.share_held)) in seen:
            raise StudyError(f"the curve of {point.policy!r} has two points at {point.capacity!r}")
        seen.add(place)


def _named(what: str, name: str) -> None:
    if not name.strip():
        raise StudyError(f"{what} needs a name")


def _within(where: str, field: str, value: float | None, most: float = math.inf) -> None:
    if value is not None and not (math.isfinite(value) and 0 <= value <= most):
        limits = "a number of 0 or more" if most == math.inf else f"within 0 to {most:g}"
        raise StudyError(f"{where}: {field.replace('_', ' ')} must be {limits}, not {value}")
