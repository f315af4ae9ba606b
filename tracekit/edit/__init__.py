"""Traces made of traces, and compared: `merge`, `slice_trace`, `diff`. All in memory for one block of rows."""

from tracekit.edit.diff import Diff, diff
from tracekit.edit.merge import merge
from tracekit.edit.slice import Selection, slice_trace

__all__ = ["Diff", "Selection", "diff", "merge", "slice_trace"]
