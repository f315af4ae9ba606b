"""The log of altered choices: each one that a plan's routing policy altered, as a row of a Parquet file."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from engine.decisions.rerouted import Choices
from engine.replay.event_log import EventLog
from tracekit.demand import step_starts
from tracekit.rows import UNUSED
from tracekit.trace import Trace


class ChoiceLog(EventLog):
    """Writes altered choices to `path`, in order; otherwise as `EventLog`, of which `append` is not used."""

    schema: ClassVar[dict[str, Any]] = {
        "visit": pl.Int64(),  # running number of the visit: step number * layers + layer
        "step": pl.Int32(),  # the trace's own number of the step
        "layer": pl.UInt16(),
        "row": pl.Int64(),  # the token's row in the trace, from 0
        "place": pl.UInt16(),  # of the choice among the token's
        "expert": pl.UInt16(),  # that the gate chose
        "weight": pl.Float32(),  # that it gave
        "served": pl.UInt16(),  # the expert that serves instead; null: dropped
        "served_weight": pl.Float32(),
    }

    def __init__(self, path: Path, trace: Trace) -> None:
        super().__init__(path, trace)
        self._metadata |= {"tracekit.choices": self._metadata.pop("tracekit.events")}
        starts = step_starts(trace.step)
        self._step_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))  # [tokens]

    def add(self, choices: Choices) -> None:
        """Add the altered ones of these choices."""
        row, layer, place = np.nonzero(choices.before != choices.after)
        at, layers = (row, layer, place), choices.before.shape[1]
        step = self._step_of[row + choices.first_row]
        order = np.lexsort((place, row, step * layers + layer))
        served = choices.after[at]
        frame = pl.DataFrame(
            {
                "visit": step * layers + layer,
                "step": self._step_ids[step],
                "layer": layer.astype(np.uint16),
                "row": row + choices.first_row,
                "place": place.astype(np.uint16),
                "expert": choices.before[at],
                "weight": choices.weights_before[at].astype(np.float32),
                "served": pl.Series(served).set(pl.Series(served == UNUSED), None),
                "served_weight": choices.weights_after[at].astype(np.float32),
            },
            schema=self.schema,
        )
        self._add(frame[order])


def choices_path(events: Path) -> Path:
    """Where the altered choices stand that belong to the events in a file: `F.parquet` -> `F.choices.parquet`."""
    return events.with_name(f"{events.stem}.choices{events.suffix}")
