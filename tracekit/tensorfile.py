"""One f16 tensor in one safetensors file: written in pieces, and read back in pieces.

The format is eight bytes of header length, a JSON header, then the tensor's bytes (safetensors README,
"Format"). Gate logits are a hundred times larger than routing: only the rows asked for are in memory. They are read and
not mapped: a map of a file that somebody cuts short ends the process.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.opening import open_file

_MAX_HEADER = 1 << 20


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def write_tensor(file: BinaryIO, name: str, pieces: Sequence[NDArray[np.float16]]) -> None:
    """Write `pieces`, joined along their first axis, as the only tensor of a safetensors file."""
    shape = [sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:]]
    size = int(np.prod(shape, dtype=np.int64)) * 2
    header = msgspec.json.encode({name: {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}})
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for piece in pieces:
        file.write(np.ascontiguousarray(piece, dtype="<f2").data)


def check_tensor(path: Path, name: str, shape: tuple[int, ...]) -> int:
    """The byte at which the tensor `name` of `shape`, f16, begins; TraceError unless the file holds just that."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise TraceError(f"{path} is not a safetensors file or is truncated")
            header = msgspec.json.decode(file.read(length), type=dict[str, _Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{path} has a damaged safetensors header: {error}") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    entry = header.get(name)
    if entry is None or len(header) != 1:
        raise TraceError(f"{path} should hold one tensor {name!r}, it holds {sorted(header)[:4]}")
    if entry.dtype != "F16" or tuple(entry.shape) != shape:
        raise TraceError(f"{path} holds {entry.dtype} {entry.shape}, expected F16 {list(shape)}")
    nbytes = 2
    for extent in shape:
        nbytes *= extent
    if entry.data_offsets != (0, nbytes) or size != 8 + length + nbytes:
        wanted = 8 + length + nbytes
        raise TraceError(f"{path} is truncated or damaged: {size} bytes instead of {wanted}")
    return 8 + length


def read_rows(path: Path, begin: int, first: int, rows: NDArray[np.float16]) -> None:
    """Fill `rows` with a tensor's from row `first` on; `check_tensor` found where it begins. TraceError."""
    try:
        with open_file(path) as file:
            file.seek(begin + first * (rows.nbytes // max(1, len(rows))))
            count = file.readinto(rows.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    if count != rows.nbytes:
        raise TraceError(f"{path} has become shorter since the trace was opened: copy the trace again")
