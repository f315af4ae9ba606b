"""The routed experts inside a response, as an array: every encoding that engines have given them."""

import base64
import binascii
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.arrays import MAGIC, parse_npy
from tracekit.importers.number_text import numbers_in
from tracekit.importers.responses import Document

_MOST_IRREGULAR = 8 << 20  # bytes of JSON


def routed_array(source: Path, name: str, value: Any, shape: tuple[int, int] | None = None) -> NDArray[Any]:
    """The array behind a `routed_experts` field, [tokens, layers, k] where the field says its shape, else flat.

    A nested list; base64 of an .npy file (vLLM from 0.22 on); base64 of flat little-endian int32 (SGLang); or an
    object of `data` (base64), `shape` and `dtype` (gateways). `shape` (layers, k) is checked where it is known.
    """
    array = _decode(source, name, value)
    if array.dtype.kind not in "iu":
        raise ImportFormatError(f"{source}: {name} holds {array.dtype}, expected expert ids")
    if array.ndim == 3 and shape is not None and array.shape[1:] != shape:
        raise ImportFormatError(
            f"{source}: {name} has {array.shape[1]} layers of {array.shape[2]} slots, "
            f"--layers and --top-k say {shape[0]} of {shape[1]}"
        )
    if array.ndim not in (1, 3):
        raise ImportFormatError(f"{source}: {name} has shape {list(array.shape)}, expected [tokens, layers, k]")
    return array


def _decode(source: Path, name: str, value: Any) -> NDArray[Any]:
    if isinstance(value, str):
        data = _base64(source, name, value)
        if data.startswith(MAGIC):
            return parse_npy(source, name, data)
        return _flat_numbers(source, name, data, np.dtype("<i4"))
    if isinstance(value, dict) and isinstance(value.get("data"), str):
        return _described(source, name, value)
    if isinstance(value, msgspec.Raw):
        numbers = numbers_in(memoryview(value))
        return _nested(source, name, _small(source, name, value)) if numbers is None else numbers
    if isinstance(value, list):
        return _nested(source, name, value)
    raise ImportFormatError(f"{source}: {name} is neither a nested list nor base64")


def _base64(source: Path, name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImportFormatError(f"{source}: {name} is not base64: truncated or of another encoding") from None


def _flat_numbers(source: Path, name: str, data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise ImportFormatError(f"{source}: {name} has {len(data)} bytes, not whole {dtype} numbers: truncated?")
    return np.frombuffer(data, dtype)


def _described(source: Path, name: str, value: Document) -> NDArray[Any]:
    known = {"uint8", "int8", "uint16", "int16", "int32", "uint32", "int64"}
    kind, shape = value.get("dtype", "int32"), value.get("shape")
    if not isinstance(kind, str) or kind not in known or value.get("encoding", "base64") != "base64":
        raise ImportFormatError(f"{source}: {name} is {str(kind)[:20]!r} in {str(value.get('encoding'))[:20]!r}")
    array = _flat_numbers(source, name, _base64(source, name, value["data"]), np.dtype(kind).newbyteorder("<"))
    if shape is None:
        return array
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 <= n < 2**31 for n in shape)):
        raise ImportFormatError(f"{source}: {name} has shape {str(shape)[:60]}, expected [tokens, layers, k]")
    if shape[0] * shape[1] * shape[2] != array.size or not array.size:
        raise ImportFormatError(f"{source}: {name} claims shape {shape}, it holds {array.size} numbers")
    return array.reshape(shape)


def _nested(source: Path, name: str, value: list[Any]) -> NDArray[Any]:
    if not value:
        return np.zeros(0, np.int64)
    if not _numbers(value):  # an array would give every text among them the room of the longest
        raise ImportFormatError(f"{source}: {name} holds what is no number, expected expert ids")
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise ImportFormatError(f"{source}: {_ragged(name, value)}") from None
    if array.dtype.kind not in "iu":
        raise ImportFormatError(f"{source}: {name} holds {array.dtype}, expected expert ids")
    return array


def _small(source: Path, name: str, value: msgspec.Raw) -> list[Any]:
    """A list that is no regular table of numbers, to say what it is instead."""
    if len(memoryview(value)) > _MOST_IRREGULAR:
        raise ImportFormatError(f"{source}: {name} is not [tokens, layers, k] of expert ids throughout")
    try:
        found: list[Any] = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImportFormatError(f"{source}: {name} is not JSON: {error}") from None
    return found


def _numbers(value: Any) -> bool:
    """Whether a nested list holds numbers and lists alone."""
    if not isinstance(value, list):
        return type(value) in (int, float, bool)
    kinds = set(map(type, value))
    return kinds <= {int, float, bool} or all(map(_numbers, value))


def _ragged(name: str, value: list[Any]) -> str:
    """What is uneven about a nested list, for a message."""
    if isinstance(value[0], list):
        for token, layers in enumerate(value):
            if not isinstance(layers, list) or len(layers) != len(value[0]):
                has = len(layers) if isinstance(layers, list) else 0
                return f"{name}: token {token} has {has} layers, token 0 has {len(value[0])}: rows were dropped"
            for layer, slots in enumerate(layers):
                if not isinstance(slots, list) or len(slots) != len(value[0][0]):
                    return f"{name}: token {token}, layer {layer} has not as many experts as the others"
    return f"{name} is not [tokens, layers, k]"
