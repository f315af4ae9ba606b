"""Conditions: the machine, the model shape and the batch size under which plans are compared with each other."""

from shlex import quote
from typing import NamedTuple

import polars as pl


class Conditions(NamedTuple):
    """Names as results hold them; None: no machine, the trace's own sizes, as recorded."""

    hardware: str | None
    model_shape: str | None
    batch: int | None

    def __str__(self) -> str:
        words = self.hardware or "hits and bytes"
        words += "" if self.model_shape is None else f" at {self.model_shape}'s shape"
        return words + ("" if self.batch is None else f", batches of {self.batch}")

    @property
    def options(self) -> str:
        """The conditions as options of `tracekit replay`, each with a blank before it."""
        return "".join(
            f" --{name.replace('_', '-')} {quote(str(value))}"
            for name, value in self._asdict().items()
            if value is not None
        )

    def rows_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of one of a study's tables under these conditions."""
        return frame.filter(
            pl.col(name).eq_missing(pl.lit(value, frame.schema[name])) for name, value in self._asdict().items()
        )
