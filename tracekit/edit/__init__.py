"""Traces made of traces: `merge`, `slice_trace`, `anonymise`; and compared: `diff`. Memory of one block of rows."""

from tracekit.edit.anonymise import anonymise
from tracekit.edit.diff import Diff, diff
from tracekit.edit.merge import merge
from tracekit.edit.slice import Selection, slice_trace

__all__ = ["Diff", "Selection", "anonymise", "diff", "merge", "slice_trace"]
