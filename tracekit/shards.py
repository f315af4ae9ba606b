"""Routing shards: a Parquet file of rows, and back. Polars is imported on first use, not before."""

import hashlib
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit.decoding import guarded
from tracekit.errors import TraceError
from tracekit.manifest import Manifest, Shard
from tracekit.opening import checked, open_file
from tracekit.rows import COLUMNS, Columns, fixed

if TYPE_CHECKING:
    import polars as pl

_T = TypeVar("_T")
_Scalar = TypeVar("_Scalar", bound=np.generic)
_BLOCK_LOOKUPS = 1 << 22


BESIDES = ("weights", "residency")  # the array columns that a routing shard may do without, in order


def routing_schema(manifest: Manifest, besides: Collection[str]) -> "dict[str, pl.DataType]":
    """The exact columns and types of a routing shard that holds some of `BESIDES`, in order."""
    import polars as pl

    width = len(manifest.moe_layers) * manifest.top_k
    schema: dict[str, pl.DataType] = {name: pl.Int32() for name in COLUMNS}
    schema["phase"] = pl.UInt8()
    schema["experts"] = pl.Array(pl.UInt16, width)
    types = {"weights": pl.Float16(), "residency": pl.UInt8()}
    return schema | {name: pl.Array(types[name], width) for name in BESIDES if name in besides}


def routing_table(
    columns: Columns, experts: NDArray[np.uint16], besides: Mapping[str, NDArray[np.generic]], manifest: Manifest
) -> "pl.DataFrame":
    """Rows as a routing shard holds them; experts and `besides`, some of `BESIDES`, [rows, layers, k]."""
    import polars as pl

    data: dict[str, NDArray[np.generic]] = {name: getattr(columns, name) for name in COLUMNS}
    data |= {name: array.reshape(len(columns), -1) for name, array in {"experts": experts, **besides}.items()}
    schema = routing_schema(manifest, besides)
    return pl.DataFrame({name: data[name] for name in schema}, schema=schema)


def write_routing(file: BinaryIO, table: "pl.DataFrame", manifest: Manifest) -> None:
    """Write one routing shard; the same rows give the same bytes."""
    # Through memory: a full disk is then an OSError like any other, not an error of polars.
    encoded = io.BytesIO()
    table.write_parquet(encoded, compression="zstd", statistics=False, row_group_size=block_rows(manifest))
    file.write(encoded.getbuffer())


def read_columns(path: Path, shard: Shard, manifest: Manifest) -> tuple[Columns, frozenset[str]]:
    """The columns of a routing shard that are one number per row, undigested; and which of `BESIDES` it holds."""
    import polars as pl

    found = _guard(path, lambda: pl.scan_parquet(shard_file(path), glob=False).collect_schema())
    besides = frozenset(BESIDES).intersection(found)
    wanted = routing_schema(manifest, besides)
    if list(found.items()) != list(wanted.items()):
        expected = ", ".join(f"{name} {kind}" for name, kind in wanted.items())
        raise TraceError(f"{path} does not hold the columns of a routing shard ({expected}): {dict(found)}")
    rows = _guard(path, lambda: pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    if rows != shard.rows:
        raise TraceError(f"{path} holds {rows} rows, the manifest says {shard.rows}")
    frame = _guard(path, lambda: pl.read_parquet(path, columns=list(COLUMNS), glob=False))

    def column(name: str, dtype: type[_Scalar]) -> NDArray[_Scalar]:
        return _array(path, frame, name, dtype, (shard.rows,))

    step, request, position = column("step", np.int32), column("request", np.int32), column("position", np.int32)
    return Columns(step, request, position, column("phase", np.uint8), column("token_id", np.int32)), besides


def read_block(
    path: Path, shard: Shard, manifest: Manifest, column: str, dtype: type[_Scalar], first: int, count: int
) -> NDArray[_Scalar]:
    """`count` rows of an array column of a routing shard, [count, layers, k], from row `first` of the shard on."""
    import polars as pl

    source = shard_file(path)
    frame = _guard(path, lambda: pl.scan_parquet(source, glob=False).slice(first, count).select(column).collect())
    return _array(path, frame, column, dtype, (count, len(manifest.moe_layers), manifest.top_k))


def block_rows(manifest: Manifest) -> int:
    """Rows that are stored, and read, together: enough to be quick about, few enough to hold many times over."""
    return max(1, _BLOCK_LOOKUPS // (len(manifest.moe_layers) * manifest.top_k))


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with open_file(shard_file(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, shard: Shard) -> None:
    """Raise TraceError unless the content of the shard at `path` is what the manifest recorded."""
    if file_digest(path) != shard.sha256:
        raise TraceError(f"{path} is truncated or damaged: not the sha256 its manifest lists; copy the trace again")


def shard_file(path: Path) -> Path:
    """`path`, if it is a file that can be read to its end: not a directory, a pipe, or nothing at all."""
    try:
        return checked(path)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TraceError(f"{path} {reason}: the manifest lists this shard; copy the trace again") from None


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


def _array(
    path: Path, frame: "pl.DataFrame", name: str, dtype: type[_Scalar], shape: tuple[int, ...]
) -> NDArray[_Scalar]:
    column = frame[name]
    array = _guard(path, column.to_numpy)
    # A null inside an array column turns the whole column into another type.
    if column.null_count() or array.dtype != dtype or array.size != np.prod(shape, dtype=np.int64):
        raise TraceError(f"{path}: column {name} has holes or the wrong type")
    return fixed(array.reshape(shape))


def _guard(path: Path, read: Callable[[], _T]) -> _T:
    from polars.exceptions import PanicException, PolarsError

    try:
        with guarded(path):
            return read()
    except (PolarsError, PanicException, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TraceError(f"{path} is not a readable routing shard: {first[:200]}") from None
