"""Inputs that a stranger might send: sound files with bytes or values changed, their digests made right again."""

import hashlib
import json
import shutil
import string
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.commands import harmless
from tracekit.errors import TracekitError

Files = dict[str, bytes]
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**40, 0.5, -0.0, 1e308, 1e999),
    *("", "a", "\x1b[2J\x1b]0;title\x07", "\u202e\u2066", "\ud800", "../../etc/passwd", "x" * 5000, "nan", "\x00"),
    *([], [[]], [0] * 300, ["a", 1, None], {}, {"a": {}}, [[[[1]]]], {"version": 1}, [2**40], [-1]),
)
"""Values to stand where others are expected."""
BYTES = (b"\x00", b"\xff", b"\x1b[2J", "\u202e".encode(), b"\x80", b"[" * 2000, b"{" * 2000, b'"', b"\n", b"9" * 400)
SLOWEST_S = 10.0
"""Of the processor, for one input."""
KINDS = (string.digits.encode(), string.ascii_letters.encode(), string.punctuation.encode() + b" \n")


@dataclass(frozen=True)
class Reader:
    """Something that reads files that strangers made.

    `sample`: sound files, by name. `read` reads a folder with such files. `mend` makes the digests in them right.
    """

    name: str
    sample: Files = field(repr=False)
    read: Callable[[Path], object]
    mend: Callable[[Files], Files] = lambda files: files


def judged(reader: Reader, files: Files, folder: Path) -> str:
    """ "read" or "refused" for files that are put into `folder`; an assertion where it is neither."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as warned:  # the command line prints each in a line of its own
        try:
            reader.read(folder)
            outcome = "read"
        except TracekitError as error:
            said = str(error)
            assert said and "\n" not in said and harmless(said) and len(said) <= 1_000, said
            assert not warned, warned[0]
            outcome = "refused"
    taken = time.process_time() - begun
    assert taken < SLOWEST_S, f"{taken} s"
    return outcome


def mutated(reader: Reader, rng: np.random.Generator) -> Files:
    """The sample with one file changed: some bytes, its length, or a value where it is JSON."""
    files = dict(reader.sample)
    name = str(rng.choice(sorted(files)))
    data = files[name]
    if name.endswith(".json") and rng.random() < 0.6:
        files[name] = json.dumps(_replaced(json.loads(data), rng)).encode()
    elif rng.random() < 0.4:
        files[name] = _nudged(data, rng)
    else:
        files[name] = _scratched(data, rng)
    return reader.mend(files) if rng.random() < 0.9 else files


def with_digests(files: Files, document: str, put: Callable[[Any, dict[str, str]], None]) -> Files:
    """The digests of all files put into a JSON document among them, as far as it still is what `put` expects."""
    try:
        value = json.loads(files[document])
        put(value, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return files
    return files | {document: json.dumps(value).encode()}


def _nudged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some digits, letters or other signs replaced by others of their kind, so that much still is what it was."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4)) if data else 0):
        place = int(rng.integers(0, len(changed)))
        kind = next((kind for kind in KINDS if changed[place] in kind), bytes(range(256)))
        changed[place] = int(rng.choice(bytearray(kind)))
    return bytes(changed)


def _scratched(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(0, len(changed) + 1))
        how = rng.integers(0, 6)
        if how == 0 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(0, 8))
        elif how == 1 and place < len(changed):
            changed[place] = int(rng.integers(0, 256))
        elif how == 2:
            changed[place:place] = BYTES[int(rng.integers(0, len(BYTES)))]
        elif how == 3:
            del changed[place : place + int(rng.integers(1, 40))]
        elif how == 4:
            changed[place : place + 8] = int(rng.choice([0, 1, 255, 2**31 - 1, 2**40, 2**63 - 1])).to_bytes(8, "little")
        else:
            del changed[place:]
    return bytes(changed)


def _replaced(value: Any, rng: np.random.Generator) -> Any:
    """The value with one thing somewhere in it replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(sorted(value)))
        how = rng.random()
        if how < 0.1:
            return {other: inner for other, inner in value.items() if other != key}
        if how < 0.2:
            return value | {"\x1b[1m" + key: value[key]}
        return value | {key: _replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = int(rng.integers(0, len(value)))
        return [*value[:place], _replaced(value[place], rng), *value[place + 1 :]]
    return HOSTILE[int(rng.integers(0, len(HOSTILE)))]
