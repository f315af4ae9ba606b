"""What a row of the league is: a published figure, and what the simulator says of it."""

from statistics import median
from typing import Literal

import msgspec

Kind = Literal["fitted", "predicted"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One published figure. `predicted` is None where the simulator has no answer; `missing` says what it lacks."""

    machine: str
    row: str
    kind: Kind
    published: float
    predicted: float | None
    missing: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over published, less one."""
        return None if self.predicted is None else self.predicted / self.published - 1


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One publication: its rows, all of one unit. `fits` says what was fitted, a line for each machine."""

    name: str
    title: str
    origin: str
    unit: str
    decimals: int
    fits: list[str]
    assumed: str
    entries: list[Entry]

    def errors(self) -> list[float]:
        """Errors of what was predicted, not fitted."""
        return [e.error for e in self.entries if e.kind == "predicted" and e.error is not None]

    @property
    def unanswered(self) -> int:
        """Rows to be predicted of which the simulator says nothing."""
        return sum(e.predicted is None for e in self.entries)

    @property
    def median_error(self) -> float:
        """Of the sizes of the errors."""
        return median(abs(error) for error in self.errors())

    @property
    def worst_error(self) -> float:
        """The largest error, with its sign."""
        return max(self.errors(), key=abs)
