"""Foreign routing traces, brought into this format: `import_trace("npz", "routing.npz", "new.trace")`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tracekit.durable import whole_or_nothing
from tracekit.errors import ImportFormatError, TraceError, did_you_mean
from tracekit.importers.options import ImportOptions
from tracekit.manifest import Manifest
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
    "deepseek-csv": Format("tracekit.importers.deepseek_csv:read", ("model", "experts"), folders=True),
    "jsonl": Format("tracekit.importers.jsonl:read", ("model", "experts")),
    "llama-csv": Format("tracekit.importers.llama_csv:read", ("model", "experts", "top_k")),
    "npz": Format("tracekit.importers.npz:read", ("model", "experts")),
    "sglang": Format("tracekit.importers.sglang:read", ("model", "experts", "layers", "top_k")),
    "vllm": Format("tracekit.importers.vllm:read", ("model", "experts")),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an importer makes of a file: the manifest, and the columns as `TraceWriter.append` takes them."""

    manifest: Manifest
    columns: Mapping[str, Any]


def import_trace(
    format_name: str, source: str | Path, output: str | Path, options: ImportOptions | None = None
) -> Trace:
    """Read `source`, a file in the format named, and write it as the trace `output`, which must not exist.

    The trace appears whole or not at all. What looks like a known defect of recordings but may be real becomes a
    note of the trace; what cannot be real is refused (`tracekit.importers.defects`).

    Raises ImportFormatError when the format is unknown or the file is not what the format says, TraceError when the
    trace cannot be written.
    """
    if format_name not in IMPORTERS:
        known = ", ".join(sorted(IMPORTERS))
        raise ImportFormatError(
            f"unknown import format {format_name!r} (known: {known}){did_you_mean(format_name, IMPORTERS)}"
        )
    chosen = IMPORTERS[format_name]
    options = options or ImportOptions()
    options.check(format_name, chosen.options)
    source, output = Path(source), Path(output)
    if output.exists() or output.is_symlink():
        raise TraceError(f"{output} exists: choose another name or remove it")
    if not source.is_file() and not (chosen.folders and source.is_dir()):
        state = "is not a file" if source.exists() else "does not exist"
        raise ImportFormatError(f"cannot import {source}: it {state}")
    imported = _read(chosen, format_name, source, options)
    _write(imported, format_name, source, output)
    return Trace.open(output)


def _read(chosen: Format, format_name: str, source: Path, options: ImportOptions) -> Imported:
    from tracekit.importers.defects import inspect

    module, _, function = chosen.reader.partition(":")
    try:
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
        try:
            writer.append(**imported.columns)
        except TraceError as error:
            raise ImportFormatError(f"{source} is not a usable {format_name} file: {error}") from None
