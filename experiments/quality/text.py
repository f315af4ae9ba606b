"""The text that quality is measured on: documents, each counted once, and the windows that they are read in."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError, ModelError, shortened
from tracekit.opening import read_file
from tracekit.recorder.prompts import read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_BYTES = 64 << 20
"""Of a file that is one document."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, under a name of its own."""

    id: str
    text: str

    @property
    def data(self) -> bytes:
        """The text in UTF-8: what bits per byte are counted by."""
        return self.text.encode()

    @property
    def digest(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A document as a model reads it: `ids` i64 [tokens + 1], the first of which is read and not predicted."""

    document: Document
    ids: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Tokens that are predicted."""
        return len(self.ids) - 1

    def windows(self, size: int) -> list[NDArray[np.int64]]:
        """The document in windows of `size` predicted tokens, each with the token before it; the last may be shorter.

        A window is read without what lies before it: together they predict every token once.
        """
        return [self.ids[start : start + size + 1] for start in range(0, self.count, size)]


def read_documents(paths: Sequence[Path]) -> tuple[list[Document], list[tuple[str, str]]]:
    """The documents of files, in order, and which were left out: (its name, the name of the one with the same text).

    A file of JSON lines (`.jsonl`, or `-`) holds a document a line, `{"id": ..., "prompt": ...}`; any other file is one
    document, named as the file is. Raises ImportFormatError.
    """
    found: dict[str, Document] = {}
    repeated, ids = [], set()
    for path in paths:
        for document in _of_file(path):
            if document.id in ids:
                raise ImportFormatError(f"{path}: two documents are named {shortened(document.id)!r}: rename one")
            ids.add(document.id)
            first = found.setdefault(document.digest, document)
            if first is not document:
                repeated.append((document.id, first.id))
    if not found:
        raise ImportFormatError("there is no text to measure on: give --text FILE")
    return list(found.values()), repeated


def _of_file(path: Path) -> list[Document]:
    if str(path) == "-" or path.suffix in (".jsonl", ".json", ".ndjson"):
        asked = read_prompts(path)
        if talk := [one for one in asked if one.prompt is None]:
            raise ImportFormatError(
                f'{path}: {shortened(talk[0].id)!r} is a conversation; quality is measured on text: give "prompt"'
            )
        return [Document(str(one.id), one.prompt or "") for one in asked]
    try:
        text = read_file(path, MOST_BYTES).decode()
    except FileNotFoundError:
        raise ImportFormatError(f"no text at {path}: the file does not exist") from None
    except OSError as error:
        raise ImportFormatError(f"text {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ImportFormatError(f"{path} is no text in UTF-8") from None
    if not text:
        raise ImportFormatError(f"{path} is empty")
    return [Document(path.name, text)]


def encode(documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase") -> list[Tokens]:
    """The documents in tokens, behind the token that begins a text, so that every byte is predicted.

    That is the tokenizer's beginning of text, or, where it has none, its end of text, which stood between texts in
    training. Raises ModelError where there is neither, ImportFormatError for a text that cannot be encoded.
    """
    begins = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    begin = next((int(token) for token in begins if isinstance(token, int)), None)
    if begin is None:
        raise ModelError("the tokenizer has neither a token that begins a text nor one that ends it")
    found = []
    for document in documents:
        try:
            ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # tokenizers are foreign code and fail in any way
            raise ImportFormatError(f"document {shortened(document.id)!r} cannot be encoded: {error}") from None
        if len(ids) == 0:
            raise ImportFormatError(f"document {shortened(document.id)!r} encodes to no tokens at all")
        found.append(Tokens(document, np.array([begin, *ids], dtype=np.int64)))
    return found
