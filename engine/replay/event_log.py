"""The event log: every decision of a replay as a row of a Parquet file, for tools that are not this one."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl

from engine.plan.plan import Plan
from policies.events import KIND_NAMES, Events
from policies.tiered_cache import TIERS
from tracekit.demand import Demand, step_starts
from tracekit.durable import aside, check_place, reporting
from tracekit.errors import TraceError
from tracekit.trace import Trace

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
SCHEMA = {
    "visit": pl.Int64(),  # running number of the visit: step number * layers + layer
    "step": pl.Int32(),  # the trace's own number of the step
    "layer": pl.UInt16(),  # MoE layer of the expert; a prefetch's lies after the visit's
    "kind": pl.Enum(KIND_NAMES),
    "expert": pl.UInt16(),  # within its layer
    "slot": pl.Int32(),  # the physical slot the expert is in, comes to or leaves
}
TIER = {"tier": pl.Enum(TIERS)}  # which copy of the expert it is; a column only where experts have two


class EventLog:
    """Writes events to `path`, in order, with memory for one piece at a time.

    Use it as a context manager and hand `append` to `replay(on_events=...)`. The file appears, whole, when
    the context is left without an exception; until then its pieces wait in a directory beside it.

    Args:
        path: the Parquet file; one that exists is replaced.
        trace: the trace that is replayed.
        plan: kept in the file's metadata.

    Raises:
        TraceError: the file cannot be written.
    """

    schema: ClassVar[dict[str, Any]] = SCHEMA

    def __init__(self, path: str | os.PathLike[str], trace: Trace, plan: Plan | None = None) -> None:
        self.path = Path(path)
        self.rows = 0
        self._step_ids = trace.step[step_starts(trace.step)[:-1]]
        self._metadata = {
            "tracekit.events": "1",
            "tracekit.trace": str(trace.path),
            "tracekit.trace_digest": trace.digest,
            "tracekit.layers": str(trace.layers),
            "tracekit.plan": "" if plan is None else plan.to_toml(),
        }
        self._tiered = plan is not None and plan.precision is not None
        self._names = pl.Series(KIND_NAMES, dtype=SCHEMA["kind"])
        self._parts: list[Path] = []

    @property
    def _columns(self) -> dict[str, Any]:
        return self.schema | (TIER if self._tiered and self.schema is SCHEMA else {})

    def __enter__(self) -> Self:
        check_place(self.path)
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:
            raise TraceError(f"cannot write {self.path}: Parquet is written only to paths in UTF-8") from None
        self._aside = aside(self.path)
        self._folder = self._aside.__enter__()
        return self

    def append(self, demand: Demand, events: Events) -> None:
        """Add the decisions on one piece of demand."""
        visit, expert = events.visit, events.expert
        layer = expert // demand.experts  # those of low copies follow
        tiers = {"tier": pl.Series(TIERS, dtype=TIER["tier"]).gather(layer // demand.layers)}
        frame = pl.DataFrame(
            {
                "visit": visit,
                "step": self._step_ids[visit // demand.layers],
                "layer": (layer % demand.layers).astype(np.uint16),
                "kind": self._names.gather(events.kind),
                "expert": (expert % demand.experts).astype(np.uint16),
                "slot": events.slot,
                **(tiers if self._tiered else {}),
            },
            schema=self._columns,
        )
        self._add(frame)

    def _add(self, frame: pl.DataFrame) -> None:
        part = self._folder / f"{len(self._parts):06d}.parquet"
        with explained(self.path):
            frame.write_parquet(part, compression="zstd", statistics=False)
        self._parts.append(part)
        self.rows += len(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._join()
        finally:
            self._aside.__exit__(kind, error, traceback)

    def _join(self) -> None:
        """Stream the pieces into one file and give it its name."""
        whole = self._folder / "whole.parquet"
        pieces = pl.scan_parquet(self._parts) if self._parts else pl.LazyFrame(schema=self._columns)
        with explained(self.path):
            pieces.sink_parquet(whole, compression="zstd", metadata=self._metadata)
            with whole.open("rb") as written:
                os.fsync(written.fileno())
            whole.replace(os.path.realpath(self.path))


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into the TraceError that says so."""
    try:
        with reporting(path):
            yield
    except pl.exceptions.PolarsError as error:
        number = _SYSTEM_ERROR.search(str(error))  # of a full disk polars says that the file is out of specification
        raise TraceError(f"cannot write {path}: {os.strerror(int(number[1])) if number else error}") from error
