"""JSON responses of serving engines: read as documents, and the routed experts in them as arrays."""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.arrays import MAGIC, parse_npy
from tracekit.shards import installed_memory

_INFLATION = 24  # bytes of Python objects made of one byte of JSON, at worst

Document = dict[str, Any]


def read_documents(source: Path) -> list[tuple[str, Document]]:
    """Every response in a file: one JSON object, a JSON list of them, or an object per line (JSONL).

    Each with its name for messages. Raises ImportFormatError where the file is something else.
    """
    size = source.stat().st_size
    if size * _INFLATION > installed_memory():
        raise ImportFormatError(f"{source} has {size >> 20} MiB, too large to import on this machine: split it")
    data = source.read_bytes()
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found = list(_lines(source, data, str(error)))
    else:
        listed = whole if isinstance(whole, list) else [whole]
        found = [(f"response {number}", item) for number, item in enumerate(_flat(listed))]
    for name, item in found:
        if not isinstance(item, dict):
            raise ImportFormatError(f"{source}: {name} is not a JSON object: expected an engine's responses")
    return found


def _flat(items: list[Any]) -> Iterator[Any]:
    for item in items:  # batches of batches, as saved call by call
        if isinstance(item, list):
            yield from item
        else:
            yield item


def _lines(source: Path, data: bytes, why: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            first = number == 1
            reason = f"not JSON: {why}" if first else f"line {number} is not JSON (truncated?): {error}"
            raise ImportFormatError(f"{source} is {reason}" if first else f"{source}: {reason}") from None
        for part in _flat([item]):
            yield f"line {number}", part


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
    if kind not in known or value.get("encoding", "base64") != "base64":
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
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise ImportFormatError(f"{source}: {_ragged(name, value)}") from None
    if array.dtype.kind not in "iu":
        raise ImportFormatError(f"{source}: {name} holds {array.dtype}, expected expert ids")
    return array


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


def integer(document: Document, *path: str) -> int | None:
    """A count somewhere inside a response; None when it is not there or is none."""
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None


def token_ids(document: Document, key: str) -> list[int]:
    """A list of token ids inside a response; empty when it is not there or is none."""
    value = document.get(key)
    if isinstance(value, list) and all(type(token) is int and 0 <= token < 2**31 for token in value):
        return value
    return []


def choices_of(source: Path, name: str, document: Document) -> list[tuple[str, Document]]:
    """The `choices` of an OpenAI-style response, with names for messages."""
    choices = document.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ImportFormatError(f"{source}: {name} has no list of choices: expected an engine's response")
    if len(choices) == 1:
        return [(name, choices[0])]
    return [(f"{name}, choice {number}", choice) for number, choice in enumerate(choices)]
