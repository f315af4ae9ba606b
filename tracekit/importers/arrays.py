"""NumPy's array files, read without trusting them: no pickles, nothing larger than what the file holds."""

import io
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError, did_you_mean
from tracekit.opening import open_file
from tracekit.shards import installed_memory

MAGIC = b"\x93NUMPY"
BOMB_BYTES = 16 << 20  # a byte of ids becomes a row of a hundred
BOMB_RATIO = 200  # 64-bit expert ids of real routing deflate by 10 to 20

_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    SyntaxError,  # NumPy parses headers as Python literals, tokenising them where that fails
    tokenize.TokenError,
    EOFError,
    NotImplementedError,  # an unknown compression method
    RuntimeError,  # an encrypted member
    OverflowError,
    MemoryError,
    RecursionError,
    TypeError,
)


def read_npz(source: Path, known: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, all of which must be `known`; ImportFormatError for anything else."""
    try:
        with open_file(source) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(source, members, known)
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read(source, name, lambda m=member: archive.open(m), member.file_size)  # type: ignore[misc]
            return arrays
    except _UNREADABLE as error:
        raise _unreadable(source, "an .npz file", error) from None


def read_npy(source: Path) -> NDArray[Any]:
    """The array of an .npy file; ImportFormatError when it is none."""
    try:
        return _read(source, "the array", lambda: open_file(source), source.stat().st_size)
    except _UNREADABLE as error:
        raise _unreadable(source, "an .npy file", error) from None


def parse_npy(source: Path, name: str, data: bytes) -> NDArray[Any]:
    """The array of .npy bytes found inside another file; ImportFormatError when they are none."""
    try:
        return _read(source, name, lambda: io.BytesIO(data), len(data))
    except _UNREADABLE as error:
        raise _unreadable(source, f"an array in {name}", error) from None


def _unreadable(source: Path, what: str, error: BaseException) -> ImportFormatError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    kind = what.removeprefix("an ")
    return ImportFormatError(f"{source} is not a readable {kind}: {first[:200]}")


def _check_members(source: Path, members: list[zipfile.ZipInfo], known: Sequence[str]) -> None:
    names = [member.filename.removesuffix(".npy") for member in members]
    if len(set(names)) != len(names):
        raise ImportFormatError(f"{source} holds the same array twice")
    for member, name in zip(members, names, strict=True):
        if name not in known or not member.filename.endswith(".npy"):
            raise ImportFormatError(
                f"{source} holds an unknown array {name[:60]!r} (known: {', '.join(known)})"
                f"{did_you_mean(name[:60], known)}"
            )
    size = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if size > installed_memory() // 4 or (size > BOMB_BYTES and size > BOMB_RATIO * packed):
        raise ImportFormatError(f"{source} unpacks {packed >> 10} KiB to {size >> 20} MiB: refused as too large")


def _read(source: Path, name: str, opened: Callable[[], Any], size: int) -> NDArray[Any]:
    """The array in a stream of `size` bytes, its header checked against that before anything is allocated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 may have written it
        return _read_quietly(source, name, opened, size)


def _read_quietly(source: Path, name: str, opened: Callable[[], Any], size: int) -> NDArray[Any]:
    file: BinaryIO
    if size > installed_memory() // 4:
        raise ImportFormatError(f"{source}: {name} has {size >> 20} MiB, too large to import on this machine: split it")
    with opened() as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ImportFormatError(f"{source}: {name} is of .npy version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        start = file.tell()
    if dtype.hasobject or dtype.kind not in "iufb":
        raise ImportFormatError(f"{source}: {name} holds {dtype}, expected numbers")
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    if min(shape, default=0) < 0 or start + nbytes != size:
        raise ImportFormatError(f"{source}: {name} claims shape {list(shape)[:8]}, the file does not hold that")
    with opened() as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
