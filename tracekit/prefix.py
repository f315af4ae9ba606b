"""The first steps of a trace, as a trace: a view that copies nothing."""

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tracekit.demand import step_starts
from tracekit.manifest import Manifest
from tracekit.rows import DECODE
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl


class _PrefixRows:
    """The rows of another trace, before the one at which the prefix ends. No later row is ever asked for."""

    def __init__(self, whole: Trace, rows: int) -> None:
        self.columns = whole.columns.take(slice(0, rows))
        self.kinds = whole.kinds
        self.experts, self.weights, self.residency = whole.experts_of, whole.weights_of, whole.recorded_of
        self.dense = whole.dense_of
        self._whole = whole

    def scan(self) -> "pl.LazyFrame":
        return self._whole.scan().head(len(self.columns))

    def digest(self, manifest: Manifest) -> str:
        return hashlib.sha256(f"{self._whole.digest} {manifest.steps}".encode()).hexdigest()


def first_steps(whole: Trace, steps: int) -> Trace:
    """The first `steps` steps of `whole`, all of them if it has no more."""
    starts = step_starts(whole.step)
    steps = min(steps, len(starts) - 1)
    rows = _PrefixRows(whole, int(starts[steps]))
    tokens, requests = len(rows.columns), len(np.unique(rows.columns.request))
    manifest = msgspec.structs.replace(whole.manifest, tokens=tokens, steps=steps, requests=requests)
    return Trace(whole.path, manifest, rows, whole.batching)


def prefix_steps(trace: Trace, share: float, least: int = 1) -> int:
    """How many steps hold this share of the decode steps, or `least` of them, and the prefill steps in between.

    Of a trace without decode steps: the share of all steps.
    """
    phase = trace.phase[step_starts(trace.step)[:-1]]
    decode = np.flatnonzero(phase == DECODE)
    if len(decode) == 0:
        decode = np.arange(len(phase))
    wanted = min(len(decode), max(least, int(np.ceil(share * len(decode)))))
    return int(decode[wanted - 1]) + 1 if wanted else 0
