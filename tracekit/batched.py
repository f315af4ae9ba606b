"""A recorded trace as if its requests had been batched: the same tokens, in other steps."""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit import shards as shard_files
from tracekit.batching import Batching, poisson_arrivals, schedule
from tracekit.errors import TraceError
from tracekit.manifest import Manifest
from tracekit.requests import told_apart
from tracekit.rows import DECODE, first_appearances, fixed
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl


class _BatchedRows:
    """The rows of a recording in another order and other steps. What is read of the recording stays in memory."""

    def __init__(self, recorded: Trace, order: NDArray[np.int64], step: NDArray[np.int32]) -> None:
        self.columns = replace(recorded.columns.take(order), step=fixed(step))
        self.kinds = recorded.kinds - {"residency"}  # a cache held what it held in the order that was recorded
        self._recorded, self._order = recorded, order

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        return fixed(self._recorded.experts[self._order[first:last]])

    def weights(self, first: int, last: int) -> NDArray[np.float16] | None:
        weights = self._recorded.weights
        return None if weights is None else fixed(weights[self._order[first:last]])

    def residency(self, first: int, last: int) -> None:
        return None

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        recorded, order = self._recorded.dense(kind), self._order[first:last]
        if recorded is None:
            return None
        if recorded[:1].nbytes * len(order) > shard_files.installed_memory():
            path = self._recorded.path
            raise TraceError(f"{path}: its {kind} do not fit into this machine's memory in another order")
        return fixed(recorded[order])

    def scan(self) -> "pl.LazyFrame":
        import polars as pl

        whole = self._recorded.scan().collect()[self._order]
        return whole.with_columns(pl.Series("step", self.columns.step)).lazy()

    def digest(self, manifest: Manifest) -> str:
        found = hashlib.sha256(self._recorded.digest.encode())
        found.update(self._order.astype("<i8").tobytes())
        found.update(self.columns.step.astype("<i4").tobytes())
        return found.hexdigest()


def batched(trace: Trace, batch: int, *, arrival_rate: float | None = None, seed: int = 0) -> Trace:
    """`trace` as a server with continuous batching would have run its requests (see `tracekit.batching.schedule`).

    What each token chose is what it chose when it was recorded: in a real batch, routing may differ in rounding.

    Args:
        batch: most requests in flight.
        arrival_rate: requests per decode step on average, drawn with `seed`; None has all there from the start.

    Raises PlanError for an impossible batch or rate, TraceError where the trace does not tell requests apart.
    """
    if not told_apart(trace.step, trace.request, trace.phase):
        raise TraceError(
            f"{trace.path} holds a batch's passes and does not say whose tokens they are: replay it as it is"
        )
    _, requests = first_appearances(trace.request)
    arrivals = None if arrival_rate is None else poisson_arrivals(requests, arrival_rate, seed)
    order, step = schedule(trace.step, trace.request, trace.phase, batch, arrivals)
    # A request's part of a recorded step is its part of exactly one batched step.
    decodes = trace.phase[order] == DECODE
    mine = trace.request[order]
    new_step = np.diff(step, prepend=-1) != 0
    parts = int((decodes & (new_step | (np.diff(mine, prepend=-1) != 0))).sum())
    steps = int((decodes & new_step).sum())
    batching = Batching(
        batch=batch,
        arrival_rate=arrival_rate,
        seed=None if arrival_rate is None else seed,
        requests=requests,
        decode_steps=steps,
        requests_per_decode_step=parts / steps if steps else None,
    )
    manifest = msgspec.structs.replace(trace.manifest, steps=int(step[-1]) + 1 if len(step) else 0)
    return Trace(trace.path, manifest, _BatchedRows(trace, order, step), batching)
