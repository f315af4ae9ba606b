"""The header of a GGUF file: what its model is and which tensors it holds, without reading one of them.

The format is ggml's (`docs/gguf.md`): a magic number, counts, key-value pairs, then each tensor's name, sizes and type.
A model may be split over files `NAME-00001-of-00003.gguf`; the pairs stand in the first.
"""

import os
import re
import struct
from collections.abc import Iterator
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import NamedTuple

from engine.plan.foreign_formats import BLOCKS
from tracekit.errors import ShapeError
from tracekit.opening import open_file

Value = int | float | bool | str | list[int] | None
# Numbers by their type's code; 8 is text, 9 a list.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_TYPES = {  # ggml's codes of tensor types; the rest are blocks
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k",
    13: "q5_k", 14: "q6_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
    22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 30: "bf16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4",
}  # fmt: skip
_PLAIN = {"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2)}
MOST = 1 << 16
"""Of pairs and of tensors: ten times what the largest model has."""
MOST_ITEMS, MOST_TEXT, KEPT = 1 << 24, 1 << 24, 1 << 12
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GgufTensor(NamedTuple):
    """One tensor: its name, its sizes (rows last, as ggml writes them), its type's word and its bytes."""

    name: str
    sizes: tuple[int, ...]
    type: str
    bytes: int


class GgufHeader(NamedTuple):
    """What one model's files say of it. Of long lists only `lengths` are kept."""

    values: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[GgufTensor, ...]
    missing: tuple[str, ...]
    """Files of a split model that are not there, whose tensors are not known."""


def read_gguf(path: str | os.PathLike[str]) -> GgufHeader:
    """The header at `path`, with the tensors of the split's other files beside it. Raises ShapeError, one line."""
    first = Path(path)
    values, lengths, tensors = _read(first)
    missing = []
    match = _SPLIT.search(first.name)
    for number in range(1, int(match[2]) + 1 if match and int(match[2]) < 1000 else 1):
        assert match is not None
        other = first.with_name(f"{first.name[: match.start()]}-{number:05}-of-{match[2]}.gguf")
        if number == int(match[1]):
            continue
        if other.exists():
            more, lengths_there, there = _read(other)
            values, lengths, tensors = more | values, lengths_there | lengths, tensors + there
        else:
            missing.append(other.name)
    return GgufHeader(values, lengths, tuple(tensors), tuple(missing))


def _read(path: Path) -> tuple[dict[str, Value], dict[str, int], list[GgufTensor]]:
    try:
        with open_file(path) as file:
            reader = _Reader(file, f"GGUF {path}")
            return reader.header()
    except OSError as error:
        raise ShapeError(f"GGUF {path}: {error.strerror or error}") from None


class _Reader:
    """A header being read, piece by piece: no length it states is believed before the bytes are there."""

    def __init__(self, file: BufferedReader, label: str) -> None:
        self.file, self.label = file, label

    def header(self) -> tuple[dict[str, Value], dict[str, int], list[GgufTensor]]:
        if self.take(4) != b"GGUF":
            raise ShapeError(f"{self.label}: no GGUF file")
        version = self.number("<I")
        if version not in (2, 3):
            raise ShapeError(f"{self.label}: GGUF version {version} is not known, 2 and 3 are")
        tensors, pairs = self.count(MOST, "tensors"), self.count(MOST, "pairs")
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(pairs):
            key = self.text()
            kind = self.number("<I")
            if kind == _LIST:
                lengths[key], values[key] = self.listed()
            else:
                values[key] = self.text() if kind == _TEXT else self.number(self.format(kind))
        return values, lengths, list(self.tensors(tensors))

    def tensors(self, count: int) -> Iterator[GgufTensor]:
        for _ in range(count):
            name = self.text()
            sizes = tuple(self.number("<Q") for _ in range(self.count(8, "dimensions", "<I")))
            code, _offset = self.number("<I"), self.number("<Q")
            word = _TYPES.get(code)
            if word is None:
                raise ShapeError(f"{self.label}: tensor {name[:64]!r} is of type {code}, which is not known")
            block, size = _PLAIN.get(word) or BLOCKS[word]
            if word == "nvfp4":
                block, size = 4 * block, 4 * size
            values = prod(sizes)
            if not 0 < values < 1 << 48 or sizes[0] % block:
                raise ShapeError(f"{self.label}: tensor {name[:64]!r} has impossible sizes for {word}")
            yield GgufTensor(name, sizes, word, values // block * size)

    def listed(self) -> tuple[int, list[int] | None]:
        """A list's length, and its items if they are few numbers."""
        kind, count = self.number("<I"), self.count(MOST_ITEMS, "items of a list")
        if kind == _TEXT:
            for _ in range(count):
                self.skip(self.count(MOST_TEXT, "bytes of a text"))
            return count, None
        size = struct.calcsize(self.format(kind))
        if count > KEPT:
            self.skip(count * size)
            return count, None
        return count, [int(value) if isinstance(value, int) else 0 for value in self.numbers(self.format(kind), count)]

    def numbers(self, layout: str, count: int) -> list[int | float | bool]:
        return list(struct.unpack(f"<{count}{layout[1]}", self.take(struct.calcsize(layout) * count)))

    def format(self, kind: int | float | bool) -> str:
        layout = _NUMBERS.get(int(kind))
        if layout is None:
            raise ShapeError(f"{self.label}: a value of type {kind}, which is not known")
        return layout

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def count(self, most: int, what: str, layout: str = "<Q") -> int:
        count = self.number(layout)
        if count > most:
            raise ShapeError(f"{self.label}: {count} {what} are more than {most}: the file is damaged")
        return count

    def text(self) -> str:
        data = self.take(self.count(MOST_TEXT, "bytes of a text"))
        return data.decode("utf-8", "replace")

    def take(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) != size:
            raise ShapeError(f"{self.label}: ends inside its header: it was cut short, fetch it again")
        return data

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.take(min(size, 1 << 20)))
