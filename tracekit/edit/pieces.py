"""A trace's rows with everything they carry, in pieces of whole steps; and an output that is there whole or not."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.demand import step_starts
from tracekit.durable import reporting
from tracekit.errors import TraceError
from tracekit.manifest import lookahead_distance
from tracekit.rows import check_distinct, damaged
from tracekit.tensorfile import map_tensor
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

Progress = Callable[[int], object]
"""Told how many more rows are done."""

_PIECE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of whole steps: `columns` as `TraceWriter.append` takes them, `rows` of the trace looked at."""

    columns: dict[str, Any]
    rows: int


def pieces(trace: Trace, keep: NDArray[np.bool_] | None = None) -> Iterator[Piece]:
    """All rows in order, or those to `keep` [tokens]; with memory for one piece of about 64 MiB, or one step.

    Raises TraceError, before any piece, when a shard's digest is not its manifest's.
    """
    for shard in trace.manifest.shards:  # what is written gets a digest of its own: damage would look sound
        shard_files.check_digest(trace.path / shard.name, shard)
    readers = {kind: DenseReader(trace, kind) for kind in {shard.kind for shard in trace.manifest.shards} - {"routing"}}
    starts = step_starts(trace.step)
    width = 17 + 8 * trace.layers * trace.top_k + sum(reader.bytes_per_row for reader in readers.values())
    most = max(1, _PIECE_BYTES // width)
    step = 0
    while step < len(starts) - 1:
        after = max(step + 1, int(np.searchsorted(starts, starts[step] + most, side="right")) - 1)
        first, last = int(starts[step]), int(starts[after])
        step = after
        chosen = np.arange(first, last) if keep is None else first + np.flatnonzero(keep[first:last])
        if len(chosen):
            yield Piece(_columns(trace, readers, first, last, chosen), last - first)
        else:
            yield Piece({}, last - first)


def copy_rows(
    source: Iterator[Piece], writer: TraceWriter, progress: Progress, *, step: int = 0, request: int = 0
) -> None:
    """Append pieces, a shard each, with `step` and `request` added to the numbers of steps and requests."""
    for piece in source:
        if piece.columns:
            moved = {"step": piece.columns["step"] + step, "request": piece.columns["request"] + request}
            writer.append(**(piece.columns | moved))
            writer.flush()
        progress(piece.rows)


@contextlib.contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A path beside `output`, which must not exist, to write a trace at; it becomes `output` when all went well."""
    if output.exists() or output.is_symlink():
        raise TraceError(f"{output} exists: choose another name or remove it")
    if not output.parent.is_dir():
        raise TraceError(f"cannot write {output}: there is no directory {output.parent}")
    aside = output.with_name(f".{output.name}.writing-{os.getpid()}")
    try:
        yield aside
        with reporting(output):
            aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class DenseReader:
    """Rows of logits or lookahead, mapped shard by shard."""

    def __init__(self, trace: Trace, kind: str) -> None:
        distance = lookahead_distance(kind)
        extent = (trace.layers - (distance or 0), trace.num_experts)
        self._shards = trace.manifest.shards_of(kind)
        self._paths = [shard_files.regular_file(trace.path / shard.name) for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in self._shards])])
        self._name = "logits" if distance is None else "lookahead"
        self._extent = extent
        self.bytes_per_row = extent[0] * extent[1] * 2

    def read(self, first: int, last: int) -> NDArray[np.float16]:
        """Rows `first` to `last` (excluded), copied."""
        parts = []
        for number, shard in enumerate(self._shards):
            start = int(self._starts[number])
            if start < last and first < start + shard.rows:
                values = map_tensor(self._paths[number], self._name, (shard.rows, *self._extent))
                parts.append(np.array(values[max(0, first - start) : last - start]))
        return np.concatenate(parts)


def _columns(
    trace: Trace, readers: dict[str, DenseReader], first: int, last: int, rows: NDArray[np.intp]
) -> dict[str, Any]:
    inside = rows - first
    experts, weights = trace.experts_of(first, last), trace.weights_of(first, last)
    recorded = trace.recorded_of(first, last)
    with damaged(trace.path):  # the writer would refuse it, too, but not say whose row it is
        check_distinct(experts, first)
    columns: dict[str, Any] = {
        "step": trace.step[rows].astype(np.int64),
        "request": trace.request[rows].astype(np.int64),
        "position": trace.position[rows],
        "phase": trace.phase[rows],
        "token_id": trace.token_id[rows],
        "experts": experts[inside],
        "weights": None if weights is None else weights[inside],
        "residency": None if recorded is None else recorded[inside],
    }
    lookahead = {}
    for kind, reader in readers.items():
        distance = lookahead_distance(kind)
        if distance is None:
            columns["logits"] = reader.read(first, last)[inside]
        else:
            lookahead[distance] = reader.read(first, last)[inside]
    return columns | {"lookahead": lookahead}
