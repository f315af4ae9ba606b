"""Nested lists of numbers read from JSON piece by piece: as Python's lists they would take twenty times its room."""

import re

import msgspec
import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 20
_BLANK = b" \t\r\n"
_LONG = re.compile(rb"[0-9]{10}")


def numbers_in(text: memoryview) -> NDArray[np.signedinteger] | None:
    """The integers of a JSON list, [n] or [tokens, layers, k], 16 bits wide where they fit, else 32.

    None where it is anything else: empty, ragged, of other depth, or not of whole numbers of at most nine digits.
    """
    row = _first_row(text)
    if row is None:
        return None
    shape = row.shape[1:]
    unit = b"," + _skeleton(shape)
    found: list[NDArray[np.signedinteger]] = []
    rest, carried = b"", b""  # of the skeleton, of the text
    for at in range(0, len(text), _PIECE):
        piece = carried + bytes(text[at : at + _PIECE])
        if at == 0:  # the list's own bracket gives way to a comma, and every row is alike
            piece = piece.lstrip(_BLANK)[1:]
            rest = b","
        last = at + _PIECE >= len(text)
        cut = len(piece) if last else piece.rfind(b",") + 1
        if cut == 0:
            return None
        piece, carried = piece[:cut], piece[cut:]
        if _LONG.search(piece):
            return None
        rest += piece.translate(None, b"0123456789-" + _BLANK)
        if last:
            if not rest.endswith(b"]"):
                return None
            rest = rest[:-1]
        whole = len(rest) // len(unit)
        if rest[: whole * len(unit)] != unit * whole:
            return None
        rest = rest[whole * len(unit) :]
        digits = piece.translate(None, b"[]" + _BLANK).rstrip(b",")
        try:
            values = np.fromstring(digits.decode(), np.int64, sep=",") if digits else np.zeros(0, np.int64)
        except ValueError:  # what is no whole number may stand behind the rows that are alike
            return None
        narrow = not len(values) or (values.min() >= -(2**15) and values.max() < 2**15)
        found.append(values.astype(np.int16 if narrow else np.int32))
    if rest:
        return None
    numbers = np.concatenate(found)
    width = int(np.prod(shape)) if shape else 1
    return numbers.reshape(-1, *shape) if len(numbers) % width == 0 else None


def _first_row(text: memoryview) -> NDArray[np.signedinteger] | None:
    """The first entry of the list as an array [1] or [1, layers, k]."""
    head = bytes(text[:_PIECE]).lstrip(_BLANK)
    stripped = head[:64].translate(None, _BLANK)
    if re.match(rb"\[-?[0-9]", stripped):
        return np.zeros(1, np.int16)
    end = re.search(rb"\]\s*\]", head)
    if not stripped.startswith(b"[[[") or end is None:
        return None
    try:
        array = np.array(msgspec.json.decode(head[: end.end()] + b"]"))
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError):
        return None
    return array if array.ndim == 3 and array.size and array.dtype.kind == "i" else None


def _skeleton(shape: tuple[int, ...]) -> bytes:
    """What is left of a value of a shape without its digits."""
    if not shape:
        return b""
    inner = _skeleton(shape[1:])
    return b"[" + b",".join([inner] * shape[0]) + b"]"
