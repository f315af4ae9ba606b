"""A trace's rows, with all that they carry, copied in pieces of whole steps; an output that is there whole or not."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.arrays import Bools
from tracekit.demand import step_starts
from tracekit.rows import check_distinct, damaged
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

Progress = Callable[[int], object]
"""Told how many more rows are done."""

_PIECE_BYTES = 64 << 20


def copy_rows(
    trace: Trace, writer: TraceWriter, progress: Progress, *, keep: Bools | None = None, step: int = 0, request: int = 0
) -> None:
    """Append all rows in order, or those to `keep` [tokens], with `step` and `request` added to their numbers.

    A shard, and memory, for each piece of about 64 MiB, or one step. Raises TraceError, before anything is written,
    when a shard's digest is not its manifest's.
    """
    for shard in trace.manifest.shards:  # what is written gets a digest of its own: damage would look sound
        shard_files.check_digest(trace.path / shard.name, shard)
    starts = step_starts(trace.step)
    extents = [trace.manifest.extent(kind) for kind in trace.manifest.dense_kinds()]
    width = 17 + 8 * trace.layers * trace.top_k + sum(2 * layers * experts for layers, experts in extents)
    most = max(1, _PIECE_BYTES // width)
    done = 0
    while done < len(starts) - 1:
        after = max(done + 1, int(np.searchsorted(starts, starts[done] + most, side="right")) - 1)
        first, last = int(starts[done]), int(starts[after])
        done = after
        chosen = np.arange(last - first) if keep is None else np.flatnonzero(keep[first:last])
        if len(chosen):
            _append(trace, writer, first, last, chosen, step, request)
            writer.flush()
        progress(last - first)


def _append(
    trace: Trace, writer: TraceWriter, first: int, last: int, chosen: NDArray[np.intp], step: int, request: int
) -> None:
    """Append the `chosen` ones, [n], of the rows from `first` to `last`."""
    columns, experts = trace.columns.take(first + chosen), trace.experts_of(first, last)
    weights, recorded = trace.weights_of(first, last), trace.recorded_of(first, last)
    logits = trace.dense_of("logits", first, last)
    ahead = {distance: trace.dense_of(f"lookahead-{distance}", first, last) for distance in trace.lookahead_distances}
    with damaged(trace.path):  # the writer would refuse it, too, but not say whose row it is
        check_distinct(experts, first)
    writer.append(
        step=columns.step.astype(np.int64) + step,
        request=columns.request.astype(np.int64) + request,
        position=columns.position,
        phase=columns.phase,
        token_id=columns.token_id,
        experts=experts[chosen],
        weights=None if weights is None else weights[chosen],
        residency=None if recorded is None else recorded[chosen],
        logits=None if logits is None else logits[chosen],
        lookahead={distance: values[chosen] for distance, values in ahead.items() if values is not None},
    )
