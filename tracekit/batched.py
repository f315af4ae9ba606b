"""A recorded trace as if its requests had been batched: the same tokens, in other steps."""

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.batching import first_appearances, poisson_arrivals, schedule
from tracekit.errors import TraceError
from tracekit.requests import told_apart
from tracekit.rows import COLUMNS, DECODE
from tracekit.shards import installed_memory
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace's requests were batched, and what came of it."""

    batch: int
    arrival_rate: float | None
    """Requests per decode step on average; None: all there from the start."""
    seed: int | None
    requests: int
    decode_steps: int
    requests_per_decode_step: float | None

    @property
    def warnings(self) -> list[str]:
        """What every result on such a trace must say."""
        told = [
            f"batched {self.batch}: an approximation: requests' routing is taken as independent of their batch",
        ]
        if self.requests < 2:
            told.append(f"the trace holds {self.requests} request: there is nothing to batch")
        return told


class BatchedTrace(Trace):
    """A view of a trace with its rows in another order and other steps. The recording stays in memory as it is."""

    def __init__(self, recorded: Trace, order: NDArray[np.int64], step: NDArray[np.int32], batching: Batching) -> None:
        columns: dict[str, NDArray[Any]] = {name: fixed(getattr(recorded, name)[order]) for name in COLUMNS}
        columns["step"] = fixed(step)
        steps = int(step[-1]) + 1 if len(step) else 0
        manifest = msgspec.structs.replace(recorded.manifest, steps=steps)
        super().__init__(recorded.path, manifest, columns, recorded.has_weights)
        self.batching = batching
        self._recorded, self._order = recorded, order

    @cached_property
    def experts(self) -> NDArray[np.uint16]:
        """The chosen experts, [tokens, layers, top_k]."""
        return fixed(self._recorded.experts[self._order])

    @cached_property
    def weights(self) -> NDArray[np.float16] | None:
        """The gate weights of `experts`, same shape; None when the trace holds none."""
        return self.weights_of(0, self.tokens)

    def experts_of(self, first: int, last: int) -> NDArray[np.uint16]:
        """`experts[first:last]`; the recording's experts are read whole."""
        return fixed(self._recorded.experts[self._order[first:last]])

    def weights_of(self, first: int, last: int) -> NDArray[np.float16] | None:
        """`weights[first:last]`; None when the trace holds none. The recording's weights are read whole."""
        weights = self._recorded.weights
        return None if weights is None else fixed(weights[self._order[first:last]])

    @cached_property
    def digest(self) -> str:
        """sha256 of the recording's digest, the order and the steps."""
        found = hashlib.sha256(self._recorded.digest.encode())
        found.update(self._order.astype("<i8").tobytes())
        found.update(self.step.astype("<i4").tobytes())
        return found.hexdigest()

    def scan(self) -> "pl.LazyFrame":
        """The routing table, read whole, in the new order and with the new steps."""
        import polars as pl

        whole = self._recorded.scan().collect()[self._order]
        return whole.with_columns(pl.Series("step", self.step)).lazy()

    def _dense_array(self, kind: str) -> NDArray[np.float16] | None:
        if kind not in self._dense:
            recorded = self._recorded._dense_array(kind)
            if recorded is not None and recorded.nbytes > installed_memory():
                raise TraceError(f"{self.path}: its {kind} do not fit into this machine's memory in another order")
            self._dense[kind] = None if recorded is None else fixed(recorded[self._order])
        return self._dense[kind]


def batched(trace: Trace, batch: int, *, arrival_rate: float | None = None, seed: int = 0) -> BatchedTrace:
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
    return BatchedTrace(trace, order, step, batching)


def fixed(array: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only."""
    array.flags.writeable = False
    return array
