"""Some requests of a trace, as a trace: a view that copies no routing before it is asked for."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.manifest import Manifest
from tracekit.rows import fixed
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl


class _Chosen:
    """Some rows of another trace, in other steps where these are given."""

    def __init__(self, whole: Trace, rows: NDArray[np.int64], step: NDArray[np.int32] | None = None) -> None:
        self.columns = whole.columns.take(rows)
        if step is not None:
            self.columns = replace(self.columns, step=fixed(step))
        self.kinds = whole.kinds
        self._whole, self._rows = whole, rows

    def experts(self, first: int, last: int) -> NDArray[np.uint16]:
        return fixed(self._whole.experts[self._rows[first:last]])

    def weights(self, first: int, last: int) -> NDArray[np.float16] | None:
        weights = self._whole.weights
        return None if weights is None else fixed(weights[self._rows[first:last]])

    def residency(self, first: int, last: int) -> NDArray[np.uint8] | None:
        recorded = self._whole.recorded
        return None if recorded is None else fixed(recorded[self._rows[first:last]])

    def dense(self, kind: str, first: int, last: int) -> NDArray[np.float16] | None:
        values = self._whole.dense(kind)
        return None if values is None else fixed(values[self._rows[first:last]])

    def scan(self) -> "pl.LazyFrame":
        return self._whole.scan().collect()[self._rows].lazy()

    def digest(self, manifest: Manifest) -> str:
        found = hashlib.sha256(self._whole.digest.encode())
        found.update(self._rows.astype("<i8").tobytes())
        found.update(self.columns.step.astype("<i4").tobytes())
        return found.hexdigest()


def of_requests(whole: Trace, requests: Collection[int]) -> Trace:
    """The rows of `whole` that are of these requests. Requests, steps and positions keep their numbers."""
    rows = np.flatnonzero(np.isin(whole.request, list(requests)))
    return _trace(whole, _Chosen(whole, rows))


def one_by_one(whole: Trace, requests: Sequence[int]) -> Trace:
    """The rows of these requests, one request after the other in this order, as if the model had served them so: steps
    are numbered anew. A step in which `whole` served several is one for each of them."""
    rows = [np.flatnonzero(whole.request == number) for number in requests]
    step, last = [], -1
    for own in rows:
        step.append(np.cumsum(np.diff(whole.step[own], prepend=-1) != 0) + last)
        last = int(step[-1][-1]) if len(own) else last
    joined = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
    numbered = np.concatenate([np.empty(0, np.int32), *step]).astype(np.int32)
    return _trace(whole, _Chosen(whole, joined, numbered))


def _trace(whole: Trace, chosen: _Chosen) -> Trace:
    rows = chosen.columns
    steps, numbers = (len(np.unique(column)) for column in (rows.step, rows.request))
    manifest = msgspec.structs.replace(whole.manifest, tokens=len(rows), steps=steps, requests=numbers)
    return Trace(whole.path, manifest, chosen)
