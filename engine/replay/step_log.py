"""The step log: what each forward pass of a replay did and where its time went, a row of a Parquet file each."""

import io
import os
from pathlib import Path

import numpy as np
import polars as pl

from engine.replay.passes import Replayed
from engine.simulator.timeline import CAUSES
from policies.events import KIND_NAMES
from tracekit.demand import step_starts
from tracekit.durable import reporting, write_synced
from tracekit.rows import DECODE
from tracekit.trace import Trace


def step_frame(trace: Trace, done: Replayed) -> pl.DataFrame:
    """A row for each step of `done`, a pass over `trace` that was kept.

    Columns: `step` (the trace's own number), `phase` (prefill or decode), `tokens`, the number of events of each kind
    (`hit`, `hit-pinned`, `hit-prefetched`, `host`, `load`, `bypass`, `admit`, `prefetch`, `evict`, `drop`); and if the
    replay is timed `begin_ns`, `total_ns`, and `total_ns` by cause (`dense_ns`, `experts_ns`, ...), which add up. Times
    are of the trace's layers.
    """
    columns: dict[str, np.ndarray | pl.Series] = {
        "step": trace.step[step_starts(trace.step)[:-1]],
        "phase": np.where(done.phase == DECODE, "decode", "prefill"),
        "tokens": done.step_tokens,
    }
    columns |= {name: done.step_kinds[:, kind] for kind, name in enumerate(KIND_NAMES)}
    if len(done.step_ns):
        columns["begin_ns"] = np.cumsum(done.step_ns) - done.step_ns
        columns["total_ns"] = done.step_ns
        columns |= {f"{cause}_ns": done.spent[:, i] for i, cause in enumerate(CAUSES)}
    return pl.DataFrame(columns)


def write_steps(path: str | os.PathLike[str], trace: Trace, done: Replayed) -> None:
    """Write `step_frame` to `path`, whole or not at all. Raises TraceError when that is not possible."""
    target, encoded = Path(path), io.BytesIO()  # through memory: a full disk is then an error like any other
    step_frame(trace, done).write_parquet(encoded, compression="zstd", statistics=False)
    with reporting(target):
        write_synced(target, lambda file: file.write(encoded.getbuffer()))
