"""The text every Python has: its standard library, as documents of three domains.

- `code`: the sources, without their docstrings
- `prose`: their docstrings, and the language reference that `help()` prints
- `tables`: character maps and other tables, and the Unicode character database

A document is training text or held-out text by a hash of the path it comes from, so the two never share a
source file, and a file keeps its side from one Python version to the next.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import tokenize
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import numpy as np

Domain = Literal["prose", "code", "tables"]
Split = Literal["train", "held-out"]

DOMAINS: tuple[Domain, ...] = ("prose", "code", "tables")
HELD_OUT_ONE_IN = 20
SHORTEST_DOCUMENT = 200  # characters; less is a licence line or an empty `__init__`

# Not the library, its tests, or written by the build of one machine (and naming its paths).
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
SKIPPED_PREFIXES = ("_sysconfigdata", "__phello__", "config-")
TABLE_FILES = {"html/entities.py", "locale.py", "mimetypes.py", "stringprep.py", "encodings/aliases.py"}
TABLE_MARKS = ("decoding_table", "decoding_map")  # what a character map in encodings/ defines

# Fewest and most characters of a prompt, so that it is about 40 to 120 tokens of the reference tokenizer.
PROMPT_SIZE: dict[Domain, tuple[int, int]] = {"prose": (180, 300), "code": (180, 280), "tables": (140, 180)}


@dataclass(frozen=True, slots=True)
class Document:
    """One text, the domain it belongs to and the path (unique with the domain) that it comes from."""

    path: str
    domain: Domain
    text: str

    @property
    def data(self) -> bytes:
        """The text in UTF-8 (lone surrogates, which some sources hold, included)."""
        return self.text.encode("utf-8", "surrogatepass")


def split_of(path: str) -> Split:
    """The side that everything from `path` falls on; a pure function of the path."""
    digest = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    return "held-out" if digest % HELD_OUT_ONE_IN == 0 else "train"


def documents(split: Split) -> list[Document]:
    """Every document of one side, in a fixed order: sources by path, then help topics, then characters.

    Raises FileNotFoundError when this Python carries no library sources (some are frozen or compiled only).
    """
    found = [
        document
        for stream in (_library(split), _help_topics(split), _characters(split))
        for document in stream
        if len(document.text) >= SHORTEST_DOCUMENT
    ]
    if {document.domain for document in found} != set(DOMAINS):
        raise FileNotFoundError(f"no library sources in {_library_root()}; use a Python that ships them")
    return found


def by_domain(found: Sequence[Document]) -> dict[Domain, list[Document]]:
    """The same documents under their domain, in the same order."""
    return {domain: [d for d in found if d.domain == domain] for domain in DOMAINS}


def digest(found: Sequence[Document]) -> str:
    """sha256 over paths, domains and texts: which text exactly a model saw."""
    sha = hashlib.sha256()
    for document in found:
        for part in (document.path.encode(), document.domain.encode(), document.data):
            sha.update(part + b"\0")
    return sha.hexdigest()


def prompts(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` held-out prompts, the three domains in turn, as {"id": "prose-003", "prompt": text, "domain": "prose"}.

    A prompt starts at a line of a document and is cut at the end of a line or word. A seed gives the same
    prompts on the same Python, and a larger `n` only adds to them.
    """
    rng = np.random.default_rng(seed)
    held_out = by_domain(documents("held-out"))
    result: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(result) < n:
        domain = DOMAINS[len(result) % len(DOMAINS)]
        shortest, longest = PROMPT_SIZE[domain]
        document = held_out[domain][int(rng.integers(len(held_out[domain])))]
        starts = [0, *(i + 1 for i, character in enumerate(document.text) if character == "\n")]
        start = starts[int(rng.integers(len(starts)))]
        prompt = _cut(document.text[start:].lstrip("\n"), int(rng.integers(shortest, longest + 1)))
        if len(prompt) >= shortest * 4 // 5 and prompt not in seen:
            seen.add(prompt)
            result.append({"id": f"{domain}-{len(result) // len(DOMAINS):03d}", "prompt": prompt, "domain": domain})
    return result


def _cut(text: str, longest: int) -> str:
    """At most `longest` characters, to the end of a line if that keeps three quarters, else of a word."""
    if len(text) <= longest:
        return text.rstrip()
    line_end = text.rfind("\n", longest * 3 // 4, longest)
    word_end = text.rfind(" ", 0, longest)
    return text[: line_end if line_end >= 0 else max(word_end, 0)].rstrip()


def _library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _library(split: Split) -> Iterator[Document]:
    root = _library_root()
    sources = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py")}
    for path in sorted(sources):
        parts = path.split("/")
        if SKIPPED_FOLDERS.intersection(parts) or any(part.startswith(SKIPPED_PREFIXES) for part in parts):
            continue
        if split_of(path) != split:
            continue
        with tokenize.open(sources[path]) as file:  # honours the coding cookie
            source = file.read()
        if path in TABLE_FILES or (parts[0] == "encodings" and any(mark in source for mark in TABLE_MARKS)):
            yield Document(path, "tables", source)
        else:
            yield from _code_and_prose(path, source)


def _code_and_prose(path: str, source: str) -> Iterator[Document]:
    """A module as two documents: its lines without docstrings, and its docstrings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(source)
    except SyntaxError:  # a template or a file for another Python
        return
    strings: list[ast.Constant] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                strings.append(value)
    strings.sort(key=lambda string: string.lineno)
    dropped: set[int] = set()
    for string in strings:
        dropped.update(range(string.lineno, (string.end_lineno or string.lineno) + 1))
    lines = source.split("\n")
    yield Document(path, "code", "\n".join(line for n, line in enumerate(lines, 1) if n not in dropped))
    yield Document(path, "prose", "\n\n".join(inspect.cleandoc(str(string.value)) for string in strings))


def _help_topics(split: Split) -> Iterator[Document]:
    for name in sorted(topics):
        path = f"pydoc_data/topics/{name}"
        if split_of(path) == split:
            yield Document(path, "prose", topics[name])


def _characters(split: Split) -> Iterator[Document]:
    """The Unicode 3.2 database, which every Python carries unchanged, a document per 256 code points."""
    database = unicodedata.ucd_3_2_0
    by_rule = ("CJK UNIFIED", "HANGUL SYLLABLE")  # names that only repeat the code point
    for block in range(0, 0x20000, 256):
        path = f"unicodedata/{block:05x}"
        if split_of(path) != split:
            continue
        rows = []
        for point in range(block, block + 256):
            character = chr(point)
            name = database.name(character, "")
            if name and not name.startswith(by_rule):
                fields = (database.category(character), database.bidirectional(character))
                rows.append(f"{point:04X};{name};{';'.join(fields)};{database.decomposition(character)}")
        yield Document(path, "tables", "\n".join(rows))
