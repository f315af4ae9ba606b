"""Foreign routing traces, brought into this format: `import_trace("npz", "routing.npz", "new.trace")`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tracekit.durable import check_new, whole_or_nothing
from tracekit.errors import ImportFormatError, TraceError, did_you_mean
from tracekit.importers.options import ImportOptions
from tracekit.manifest import Manifest
from tracekit.opening import checked
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

__all__ = ["IMPORTERS", "Format", "ImportOptions", "Imported", "import_trace"]


@dataclass(frozen=True, slots=True)
class Format:
    """Where a format's reader is, which options it understands, and whether it takes a folder of files."""

    reader: str
    options: tuple[str, ...]
    folders: bool = False


IMPORTERS = {
    "bigmoe-csv": Format("tracekit.importers.bigmoe_csv:read", ("model",)),
    "deepseek-csv": Format(
        "tracekit.importers.deepseek_csv:read",
        ("model", "experts", "drop_slot", "rows_as", "tokenizer"),
        folders=True,
    ),
    "jsonl": Format("tracekit.importers.jsonl:read", ("model", "experts", "request_field", "drop_slot")),
    "llama-csv": Format("tracekit.importers.llama_csv:read", ("model", "experts", "top_k", "drop_slot")),
    "mbolt": Format("tracekit.importers.mbolt:read", ("model", "experts", "drop_slot")),
    "npz": Format("tracekit.importers.npz:read", ("model", "experts", "drop_slot")),
    "parquet": Format("tracekit.importers.jsonl:read_parquet", ("model", "experts", "request_field", "drop_slot")),
    "router-data": Format("tracekit.importers.router_data:read", ("model", "experts", "drop_slot")),
    "sglang": Format("tracekit.importers.sglang:read", ("model", "experts", "layers", "top_k", "drop_slot")),
    "vllm": Format("tracekit.importers.vllm:read", ("model", "experts", "drop_slot")),
}
_PIECE = 16 << 20
"""Ids that become one shard."""
AUTO = "auto"
"""In place of a format: the file shows it (`auto.recognise`), and a note says how."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an importer makes of a file: the manifest, and the columns as `TraceWriter.append` takes them."""

    manifest: Manifest
    columns: Mapping[str, Any]


def import_trace(
    format_name: str, source: str | Path, output: str | Path, options: ImportOptions | None = None
) -> Trace:
    """Read `source`, a file in the format named or "auto", and write it as the trace `output`, which must not exist.

    The trace appears whole or not at all. What looks like a known defect of recordings but may be real becomes a
    note of the trace; what cannot be real is refused (`tracekit.importers.defects`).

    Raises ImportFormatError when the format is unknown or the file is not what the format says, TraceError when the
    trace cannot be written.
    """
    if format_name not in (*IMPORTERS, AUTO):
        known = (AUTO, *sorted(IMPORTERS))
        raise ImportFormatError(
            f"unknown import format {format_name!r} (known: {', '.join(known)}){did_you_mean(format_name, known)}"
        )
    source, output = Path(source), Path(output)
    check_new(output)
    format_name, why = _recognised(source) if format_name == AUTO else (format_name, None)
    chosen = IMPORTERS[format_name]
    options = options or ImportOptions()
    options.check(format_name, chosen.options)
    if not (chosen.folders and source.is_dir()):
        _check_file(source)
    imported = _read(chosen, format_name, source, options)
    if why is not None:
        notes = [f"taken for {format_name}: {why}", *imported.manifest.notes]
        imported = replace(imported, manifest=msgspec.structs.replace(imported.manifest, notes=notes))
    _write(imported, format_name, source, output)
    return Trace.open(output)


def _recognised(source: Path) -> tuple[str, str]:
    from tracekit.importers.auto import recognise

    if not source.is_dir():
        _check_file(source)
    try:
        return recognise(source)
    except OSError as error:
        raise ImportFormatError(f"cannot read {source}: {error.strerror or error}") from None


def _check_file(source: Path) -> None:
    try:
        checked(source)
    except FileNotFoundError:
        raise ImportFormatError(f"cannot import {source}: it does not exist") from None
    except OSError as error:
        raise ImportFormatError(f"cannot import {source}: {error.strerror or error}") from None


def _read(chosen: Format, format_name: str, source: Path, options: ImportOptions) -> Imported:
    from tracekit.importers.defects import inspect
    from tracekit.importers.saved import refuse_pickle

    module, _, function = chosen.reader.partition(":")
    try:
        if source.is_file():
            refuse_pickle(source)
        imported: Imported = getattr(import_module(module), function)(source, options)
        imported.manifest.check()
        return inspect(source, imported)
    except TraceError as error:
        raise ImportFormatError(f"{source} is not a usable {format_name} file: {error}") from None
    except MemoryError:
        raise ImportFormatError(f"{source} does not fit into this machine's memory: split it") from None
    except OSError as error:
        raise ImportFormatError(f"cannot read {source}: {error.strerror or error}") from None


def _write(imported: Imported, format_name: str, source: Path, output: Path) -> None:
    with whole_or_nothing(output) as place, TraceWriter(place, imported.manifest) as writer:
        for first, last in _shards(imported):
            try:
                writer.append(**{name: _part(column, first, last) for name, column in imported.columns.items()})
            except TraceError as error:
                of = f", rows from {first} on" if first else ""
                raise ImportFormatError(f"{source} is not a usable {format_name} file{of}: {error}") from None
            writer.flush()


def _shards(imported: Imported) -> list[tuple[int, int]]:
    """The rows in pieces of whole steps: a large import is written piece by piece, a small one at once."""
    experts, step = np.asarray(imported.columns["experts"]), np.asarray(imported.columns["step"])
    count = len(experts) if experts.ndim == 3 else 0
    if count * (experts[:1].size or 1) <= _PIECE or step.shape != (count,):
        return [(0, count)]  # what is wrong with it, the writer says
    ends = np.arange(max(1, _PIECE // experts[0].size), count, max(1, _PIECE // experts[0].size))
    cuts = np.unique(np.searchsorted(step, step[ends], side="left"))
    edges = [0, *cuts[cuts > 0].tolist(), count]
    return list(pairwise(edges))


def _part(column: Any, first: int, last: int) -> Any:
    """The rows of a column; one value is of all rows."""
    return column if column is None or np.ndim(column) == 0 else column[first:last]
