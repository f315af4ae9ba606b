"""Routing shards: a Parquet file of rows, and back. Polars is imported on first use, not before."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.manifest import Manifest, Shard
from tracekit.rows import Rows

if TYPE_CHECKING:
    import polars as pl

_T = TypeVar("_T")
COLUMNS = ("step", "request", "position", "phase", "token_id")


def routing_schema(manifest: Manifest, *, weights: bool) -> "dict[str, pl.DataType]":
    """The exact columns and types of a routing shard, in order."""
    import polars as pl

    width = len(manifest.moe_layers) * manifest.top_k
    schema: dict[str, pl.DataType] = {name: pl.Int32() for name in COLUMNS}
    schema["phase"] = pl.UInt8()
    schema["experts"] = pl.Array(pl.UInt16, width)
    if weights:
        schema["weights"] = pl.Array(pl.Float16, width)
    return schema


def write_routing(file: BinaryIO, rows: Rows, weights: NDArray[np.float16] | None, manifest: Manifest) -> None:
    """Write one routing shard; the same rows give the same bytes."""
    import polars as pl

    columns: dict[str, NDArray[Any]] = {name: getattr(rows, name) for name in COLUMNS}
    columns["experts"] = rows.experts.reshape(len(rows), -1)
    if weights is not None:
        columns["weights"] = weights.reshape(len(rows), -1)
    frame = pl.DataFrame(columns, schema=routing_schema(manifest, weights=weights is not None))
    # Through memory: a full disk is then an OSError like any other, not an error of polars.
    encoded = io.BytesIO()
    frame.write_parquet(encoded, compression="zstd", statistics=False)
    file.write(encoded.getbuffer())


def read_routing(path: Path, shard: Shard, manifest: Manifest) -> tuple[Rows, bool]:
    """The rows of a routing shard, and whether it holds weights; its digest is checked on the way.

    Checking what is being read anyway costs a fifth of decoding it, and keeps a flipped byte from becoming an
    answer.
    """
    import polars as pl

    data = regular_file(path).read_bytes()
    check_digest(path, hashlib.sha256(data).hexdigest(), shard)
    weights = "weights" in _guard(path, lambda: pl.read_parquet_schema(data))
    frame = _read(path, data, shard, routing_schema(manifest, weights=weights), [*COLUMNS, "experts"])
    shape = (shard.rows, len(manifest.moe_layers), manifest.top_k)
    columns: dict[str, Any] = {name: _array(path, frame, name, (shard.rows,)) for name in COLUMNS}
    return Rows(experts=_array(path, frame, "experts", shape), **columns), weights


def read_weights(path: Path, shard: Shard, manifest: Manifest) -> NDArray[np.float16]:
    """The weights [rows, layers, k] of a routing shard that was read, and so digested, before."""
    frame = _read(path, regular_file(path), shard, routing_schema(manifest, weights=True), ["weights"])
    return _array(path, frame, "weights", (shard.rows, len(manifest.moe_layers), manifest.top_k))


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, digest: str, shard: Shard) -> None:
    """Raise TraceError unless a shard's content is what the manifest recorded."""
    if digest != shard.sha256:
        raise TraceError(f"{path} is truncated or damaged: not the sha256 its manifest lists; copy the trace again")


def regular_file(path: Path) -> Path:
    """`path`, if it is a file that can be read to its end: not a directory, a pipe, or nothing at all."""
    if not path.is_file():
        raise TraceError(f"{path} is missing: the manifest lists this shard; copy the trace again")
    return path


def check_memory(path: Path, manifest: Manifest) -> None:
    """Raise TraceError when the manifest announces more lookups than this machine's memory could hold."""
    needed = manifest.tokens * (len(manifest.moe_layers) * manifest.top_k * 2 + 17)
    if needed > installed_memory():
        has = installed_memory() >> 30
        raise TraceError(f"{path} announces {needed >> 30} GiB of routing, this machine has {has} GiB")


def installed_memory() -> int:
    """Bytes of main memory; 64 GiB where the system will not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30


def _read(
    path: Path, source: Path | bytes, shard: Shard, schema: "dict[str, pl.DataType]", columns: Sequence[str]
) -> "pl.DataFrame":
    import polars as pl

    found = _guard(path, lambda: pl.read_parquet_schema(source))
    if list(found.items()) != list(schema.items()):
        expected = ", ".join(f"{name} {kind}" for name, kind in schema.items())
        raise TraceError(f"{path} does not hold the columns of a routing shard ({expected}): {dict(found)}")
    rows = _guard(path, lambda: pl.scan_parquet(source).select(pl.len()).collect().item())
    if rows != shard.rows:
        raise TraceError(f"{path} holds {rows} rows, the manifest says {shard.rows}")
    frame = _guard(path, lambda: pl.read_parquet(source, columns=list(columns)))
    if frame.height != shard.rows:
        raise TraceError(f"{path} holds {frame.height} rows, the manifest says {shard.rows}")
    return frame


def _array(path: Path, frame: "pl.DataFrame", name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    column = frame[name]
    wanted = {"phase": np.uint8, "experts": np.uint16, "weights": np.float16}.get(name, np.int32)
    array = _guard(path, column.to_numpy)
    # A null inside an array column turns the whole column into another type.
    if column.null_count() or array.dtype != wanted or array.size != np.prod(shape, dtype=np.int64):
        raise TraceError(f"{path}: column {name} has holes or the wrong type")
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _guard(path: Path, read: Callable[[], _T]) -> _T:
    import polars as pl

    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TraceError(f"{path} is not a readable routing shard: {first[:200]}") from None
