"""The first steps of a trace, as a trace: a view that copies nothing."""

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.demand import step_starts
from tracekit.rows import COLUMNS, DECODE
from tracekit.trace import Trace

if TYPE_CHECKING:
    import polars as pl


class PrefixTrace(Trace):
    """The first `steps` steps of `whole`, all of them if it has no more. Arrays are as in `Trace`, but shorter."""

    def __init__(self, whole: Trace, steps: int) -> None:
        starts = step_starts(whole.step)
        steps = min(steps, len(starts) - 1)
        rows = int(starts[steps])
        columns = {name: getattr(whole, name)[:rows] for name in COLUMNS}
        requests = len(np.unique(columns["request"]))
        manifest = msgspec.structs.replace(whole.manifest, tokens=rows, steps=steps, requests=requests)
        super().__init__(whole.path, manifest, columns, whole.has_weights, whole.has_recorded)
        self.batching = whole.batching
        self._whole = whole

    @cached_property
    def experts(self) -> NDArray[np.uint16]:
        """The chosen experts, [tokens, layers, top_k]."""
        return self._whole.experts_of(0, self.tokens)

    @cached_property
    def weights(self) -> NDArray[np.float16] | None:
        """The gate weights of `experts`, same shape; None when the trace holds none."""
        return self._whole.weights_of(0, self.tokens)

    def experts_of(self, first: int, last: int) -> NDArray[np.uint16]:
        """`experts[first:last]`."""
        return self._whole.experts_of(first, min(last, self.tokens))

    def weights_of(self, first: int, last: int) -> NDArray[np.float16] | None:
        """`weights[first:last]`; None when the trace holds none."""
        return self._whole.weights_of(first, min(last, self.tokens))

    def recorded_of(self, first: int, last: int) -> NDArray[np.uint8] | None:
        """`recorded[first:last]`; None when the trace does not say."""
        return self._whole.recorded_of(first, min(last, self.tokens))

    @cached_property
    def digest(self) -> str:
        """sha256 of the whole's digest and the number of steps."""
        return hashlib.sha256(f"{self._whole.digest} {self.manifest.steps}".encode()).hexdigest()

    def scan(self) -> "pl.LazyFrame":
        """The routing table's first rows."""
        return self._whole.scan().head(self.tokens)

    def _dense_array(self, kind: str) -> NDArray[np.float16] | None:
        whole = self._whole._dense_array(kind)
        return None if whole is None else whole[: self.tokens]


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
