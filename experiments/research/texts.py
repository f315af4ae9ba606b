"""Documents of the reference models' text as prompts."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from experiments.demo.stdlib_text import Document
from tracekit.recorder.prompts import Prompt


def prompt_of(one: Document, characters: int | None = None) -> Prompt:
    """A document, or so much of its beginning, named by its kind and path.

    Some sources hold halves of surrogate pairs, which JSON does not: a question mark stands for each.
    """
    return Prompt(id=f"{one.domain}/{one.path}", prompt=one.text[:characters].encode(errors="replace").decode())


def write_prompts(prompts: Iterable[Prompt], path: Path) -> Path:
    """A file of JSON lines, one to a prompt."""
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in prompts))
    return path
