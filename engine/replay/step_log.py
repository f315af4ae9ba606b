"""The step log: what each forward pass of a replay did and where its time went, a row of a Parquet file each."""

import os
from pathlib import Path

import numpy as np
import polars as pl

from engine.replay.event_log import KINDS, explained
from engine.replay.passes import DECODE, Replayed
from engine.simulator.timeline import CAUSES
from policies.events import Events
from tracekit import Trace
from tracekit.demand import Demand, step_starts
from tracekit.durable import write_synced


class StepLog:
    """Collects a replay's steps: hand `count` to `replay(on_events=...)`, then `write` what `on_done` gives.

    Columns: `step` (the trace's own number), `phase` (prefill or decode), `tokens`, the number of events of each kind
    (`hit`, `hit-pinned`, `hit-prefetched`, `load`, `bypass`, `prefetch`, `evict`, `drop`); and if the replay is timed
    `begin_ns`, `total_ns`, and `total_ns` by cause (`dense_ns`, `experts_ns`, ...), which add up. Times are of the
    trace's layers.
    """

    def __init__(self, trace: Trace) -> None:
        self._step_ids = trace.step[step_starts(trace.step)[:-1]]
        self._kinds = np.zeros((len(self._step_ids), len(KINDS)), np.int64)

    def count(self, demand: Demand, events: Events) -> None:
        """Add the decisions on one piece of demand."""
        np.add.at(self._kinds, (events.visit // demand.layers, events.kind), 1)

    def frame(self, done: Replayed) -> pl.DataFrame:
        """The rows."""
        columns: dict[str, np.ndarray | pl.Series] = {
            "step": self._step_ids,
            "phase": np.where(done.phase == DECODE, "decode", "prefill"),
            "tokens": done.step_tokens,
        }
        columns |= {name: self._kinds[:, kind] for kind, name in KINDS.items()}
        if len(done.step_ns):
            columns["begin_ns"] = np.cumsum(done.step_ns) - done.step_ns
            columns["total_ns"] = done.step_ns
            columns |= {f"{cause}_ns": done.spent[:, i] for i, cause in enumerate(CAUSES)}
        return pl.DataFrame(columns)

    def write(self, path: str | os.PathLike[str], done: Replayed) -> None:
        """Write the rows to `path`, whole or not at all. Raises TraceError when that is not possible."""
        target, frame = Path(path), self.frame(done)
        with explained(target):
            write_synced(target, lambda file: frame.write_parquet(file, compression="zstd", statistics=False))
