"""Part of a trace as a trace: some requests, some steps, one phase."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.durable import whole_or_nothing
from tracekit.edit.pieces import Progress, copy_rows
from tracekit.errors import TraceError, did_you_mean
from tracekit.notes import cut
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

_PHASES = {"prefill": PREFILL, "decode": DECODE}
_NUMBER = re.compile(r"[0-9]{1,10}")
_RANGE = re.compile(r"([0-9]{0,10}):([0-9]{0,10})")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows: each part as on the command line, "0:10" (the end excluded), "5:" or ":10"; None for all.

    Requests and steps may be several numbers and ranges, "3,6,9:12".
    """

    requests: str | None = None
    steps: str | None = None
    phase: str | None = None

    def rows(self, trace: Trace) -> NDArray[np.bool_]:
        """Whether each row is selected, [tokens]; TraceError for a range that cannot be read."""
        keep = np.ones(trace.tokens, np.bool_)
        if self.requests is not None:
            keep &= _among("requests", self.requests, trace.request)
        if self.steps is not None:
            keep &= _among("steps", self.steps, trace.step)
        if self.phase is not None:
            if self.phase not in _PHASES:
                hint = did_you_mean(self.phase, _PHASES)
                raise TraceError(f"--phase is {self.phase!r}, expected prefill or decode{hint}")
            keep &= trace.phase == _PHASES[self.phase]
        return keep

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("requests", "steps", "phase") if (value := getattr(self, name))]
        return ", ".join(parts)


def slice_trace(
    trace: Trace, selection: Selection, output: str | Path, *, progress: Progress = lambda rows: None
) -> Trace:
    """Write the selected rows of `trace` as the trace `output`, which must not exist, and open it.

    Requests, steps and positions keep their numbers; weights, logits and lookahead come along. Raises TraceError when
    a range cannot be read or selects nothing.
    """
    keep = selection.rows(trace)
    if not str(selection):
        raise TraceError("nothing to slice by: give --requests, --steps or --phase")
    if not keep.any():
        raise TraceError(f"{trace.path} has no rows of {selection}: {_extent(trace)}")
    manifest = trace.manifest
    notes = [
        *cut(manifest.notes, np.unique(trace.step[keep])),
        f"sliced from {trace.path.name} ({manifest.tokens} tokens, digest {trace.digest[:16]}): {selection}",
        *([] if manifest.complete else ["sliced from an incomplete recording"]),
    ]
    output = Path(output)
    with whole_or_nothing(output) as aside, TraceWriter(aside, manifest.without_rows(notes)) as writer:
        copy_rows(trace, writer, progress, keep=keep)
        writer.finish()
    return Trace.open(output)


def _among(name: str, text: str, numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether each number is in one of the ranges of `text`."""
    parts = text.split(",")
    ranges = [_range(name, f"{part}:{int(part) + 1}" if _NUMBER.fullmatch(part) else part) for part in parts]
    edges = np.array(sorted(ranges))
    last = np.maximum.accumulate(edges[:, 1])
    place = np.searchsorted(edges[:, 0], numbers, side="right") - 1
    found: NDArray[np.bool_] = (place >= 0) & (numbers < last[place])
    return found


def _range(name: str, text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    if found is None or text == ":":
        raise TraceError(f"--{name} is {text[:40]!r}, expected FIRST:END such as 0:10, 5: or :10")
    low, high = int(found[1] or 0), int(found[2]) if found[2] else 2**31
    if low >= high:
        raise TraceError(f"--{name} is {text!r}: nothing lies from {low} to before {high}")
    return low, high


def _extent(trace: Trace) -> str:
    if not trace.tokens:
        return "it is empty"
    return (
        f"it has requests {trace.request.min()}:{int(trace.request.max()) + 1}, "
        f"steps {trace.step[0]}:{int(trace.step[-1]) + 1}"
    )
