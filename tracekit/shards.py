"""Routing shards: a Parquet file of rows, and back. Polars is imported on first use, not before."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.manifest import Manifest, Shard
from tracekit.rows import COLUMNS, Rows

if TYPE_CHECKING:
    import polars as pl

_T = TypeVar("_T")
ArrayColumn = Literal["experts", "weights", "residency"]
ARRAY_TYPES: dict[str, type[np.generic]] = {
    "experts": np.uint16,
    "weights": np.float16,
    "residency": np.uint8,
}
_BLOCK_LOOKUPS = 1 << 22


def routing_schema(manifest: Manifest, *, weights: bool, residency: bool = False) -> "dict[str, pl.DataType]":
    """The exact columns and types of a routing shard, in order."""
    import polars as pl

    width = len(manifest.moe_layers) * manifest.top_k
    schema: dict[str, pl.DataType] = {name: pl.Int32() for name in COLUMNS}
    schema["phase"] = pl.UInt8()
    schema["experts"] = pl.Array(pl.UInt16, width)
    if weights:
        schema["weights"] = pl.Array(pl.Float16, width)
    if residency:
        schema["residency"] = pl.Array(pl.UInt8, width)
    return schema


def write_routing(
    file: BinaryIO,
    rows: Rows,
    weights: NDArray[np.float16] | None,
    manifest: Manifest,
    residency: NDArray[np.uint8] | None = None,
) -> None:
    """Write one routing shard; the same rows give the same bytes."""
    import polars as pl

    columns: dict[str, NDArray[Any]] = {name: getattr(rows, name) for name in COLUMNS}
    columns["experts"] = rows.experts.reshape(len(rows), -1)
    if weights is not None:
        columns["weights"] = weights.reshape(len(rows), -1)
    if residency is not None:
        columns["residency"] = residency.reshape(len(rows), -1)
    schema = routing_schema(manifest, weights=weights is not None, residency=residency is not None)
    frame = pl.DataFrame(columns, schema=schema)
    # Through memory: a full disk is then an OSError like any other, not an error of polars.
    encoded = io.BytesIO()
    frame.write_parquet(encoded, compression="zstd", statistics=False, row_group_size=block_rows(manifest))
    file.write(encoded.getbuffer())


def read_columns(path: Path, shard: Shard, manifest: Manifest) -> tuple[dict[str, NDArray[Any]], frozenset[str]]:
    """The columns of a routing shard that are one number per row, undigested; and what it holds besides experts."""
    schema = _guard(path, lambda: _polars().scan_parquet(regular_file(path), glob=False).collect_schema())
    besides = frozenset(name for name in ("weights", "residency") if name in schema)
    expected = routing_schema(manifest, weights="weights" in besides, residency="residency" in besides)
    _check_shape(path, shard, expected)
    frame = _guard(path, lambda: _polars().read_parquet(path, columns=list(COLUMNS), glob=False))
    return {name: _array(path, frame, name, (shard.rows,)) for name in COLUMNS}, besides


def read_block(
    path: Path, shard: Shard, manifest: Manifest, column: ArrayColumn, first: int, count: int
) -> NDArray[Any]:
    """`count` rows of an array column of a routing shard, [count, layers, k], from row `first` of the shard on."""
    source = regular_file(path)
    frame = _guard(
        path, lambda: _polars().scan_parquet(source, glob=False).slice(first, count).select(column).collect()
    )
    return _array(path, frame, column, (count, len(manifest.moe_layers), manifest.top_k))


def block_rows(manifest: Manifest) -> int:
    """Rows that are stored, and read, together: enough to be quick about, few enough to hold many times over."""
    return max(1, _BLOCK_LOOKUPS // (len(manifest.moe_layers) * manifest.top_k))


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, shard: Shard) -> None:
    """Raise TraceError unless the content of the shard at `path` is what the manifest recorded."""
    if file_digest(path) != shard.sha256:
        raise TraceError(f"{path} is truncated or damaged: not the sha256 its manifest lists; copy the trace again")


def regular_file(path: Path) -> Path:
    """`path`, if it is a file that can be read to its end: not a directory, a pipe, or nothing at all."""
    if not path.is_file():
        raise TraceError(f"{path} is missing: the manifest lists this shard; copy the trace again")
    return path


def check_memory(path: Path, manifest: Manifest, *, routing: bool = True) -> None:
    """Raise TraceError when the manifest announces more than this machine's memory holds; `routing`: experts, too."""
    needed = manifest.tokens * (17 + (len(manifest.moe_layers) * manifest.top_k * 2 if routing else 0))
    if needed > installed_memory():
        has = installed_memory() >> 30
        raise TraceError(f"{path} announces {needed >> 30} GiB of routing, this machine has {has} GiB")


def installed_memory() -> int:
    """Bytes of main memory; 64 GiB where the system will not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30


def _check_shape(path: Path, shard: Shard, schema: "dict[str, pl.DataType]") -> None:
    """Raise TraceError unless a shard has the columns and the number of rows that it should."""
    found = _guard(path, lambda: _polars().scan_parquet(path, glob=False).collect_schema())
    if list(found.items()) != list(schema.items()):
        expected = ", ".join(f"{name} {kind}" for name, kind in schema.items())
        raise TraceError(f"{path} does not hold the columns of a routing shard ({expected}): {dict(found)}")
    rows = _guard(path, lambda: _polars().scan_parquet(path, glob=False).select(_polars().len()).collect().item())
    if rows != shard.rows:
        raise TraceError(f"{path} holds {rows} rows, the manifest says {shard.rows}")


def _array(path: Path, frame: "pl.DataFrame", name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    column = frame[name]
    wanted = np.uint8 if name == "phase" else ARRAY_TYPES.get(name, np.int32)
    array = _guard(path, column.to_numpy)
    # A null inside an array column turns the whole column into another type.
    if column.null_count() or array.dtype != wanted or array.size != np.prod(shape, dtype=np.int64):
        raise TraceError(f"{path}: column {name} has holes or the wrong type")
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _polars() -> Any:
    import polars

    return polars


def _guard(path: Path, read: Callable[[], _T]) -> _T:
    pl = _polars()
    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TraceError(f"{path} is not a readable routing shard: {first[:200]}") from None
