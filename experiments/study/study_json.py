"""What study.json holds, as far as others read it."""

from typing import Any, TypedDict

import msgspec


class Compared(TypedDict):
    """A comparison of the winner with another plan."""

    verdict: str
    outcome: str


class End(TypedDict):
    """The last plan that a search kept, or the first that it pruned."""

    plan: str
    value: float


class Round(TypedDict):
    """What a search did on a beginning of the traces."""

    share: float
    plans: int
    kept: int
    pruned: int
    too_large: int
    failed: int
    last_kept: End | None
    first_pruned: End | None


class SettingSummary(TypedDict):
    """Who won on one machine, shape and batch size."""

    hardware: str | None
    model_shape: str | None
    batch: int | None
    winner: str | None
    plan_toml: str | None
    room_bytes: int | None
    statement: str
    comparisons: list[Compared]
    ranking: list[str]
    notes: list[str]
    search: list[Round]


class Failure(TypedDict):
    """Cells that failed for one reason."""

    error: str
    cells: int
    first_plan: str


class Statistics(TypedDict):
    """How intervals were found."""

    level: float
    resamples: int
    seed: int


class Machine(TypedDict):
    """A profile, of which a report names this."""

    name: str


class Provenance(TypedDict):
    """What it all was made from."""

    traces: dict[str, str]
    hardware: list[Machine]


class Summary(TypedDict):
    """The whole file."""

    objective: str
    cells: int
    failed: int
    errors: list[Failure]
    settings: list[SettingSummary]
    warnings: list[str]
    statistics: Statistics
    provenance: Provenance
    files: dict[str, str]


def is_summary(found: Any) -> bool:
    """Whether it is what this version writes."""
    try:
        msgspec.convert(found, Summary)
    except msgspec.ValidationError:
        return False
    return True
