"""Conditions: machine, engine, model shape and batch size under which plans are compared with each other."""

from shlex import quote
from typing import NamedTuple

import polars as pl

from engine.hardware.profile import OWN


class Conditions(NamedTuple):
    """Names as results hold them; None: no machine, the trace's own sizes, as recorded."""

    hardware: str | None
    model_shape: str | None
    batch: int | None
    engine: str | None = None

    def __str__(self) -> str:
        words = self.hardware or "hits and bytes"
        words += "" if self.engine is None else f" under {self.engine}"
        words += "" if self.model_shape is None else f" at {self.model_shape}'s shape"
        return words + ("" if self.batch is None else f", batches of {self.batch}")

    @property
    def options(self) -> str:
        """The conditions as options of `tracekit replay`, each with a blank before it."""
        return "".join(
            f" --{name.replace('_', '-')} {quote(str(value))}"
            for name, value in self._asdict().items()
            if value not in (None, OWN)
        )

    def rows_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of one of a study's tables under these conditions."""
        return frame.filter(
            pl.col(name).eq_missing(pl.lit(value, frame.schema[name])) for name, value in self._asdict().items()
        )
