"""Which tokens the rows of a response belong to: held against its own counts of tokens, in one place for all engines.

A prompt of P tokens and G generated ones are P + G - 1 tokens that went through the model: the last is never fed back.
Rows that are fewer begin at a later position (a start offset, which responses do not repeat); rows of positions below
`cached` are copies of an earlier request's: those tokens went through no expert. What fits neither is left out.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.sequences import Sequence


@dataclass(frozen=True, slots=True)
class Part:
    """One generated text of a response: its rows [rows, layers, k] and what is known about them.

    `start` is the position of the first row where the response says it; `ids` are token ids from position 0, empty
    when unknown; `of_all` is what all texts of the response generated together, where it has several.
    """

    name: str
    routed: NDArray[Any]
    prompt: int | None = None
    generated: int | None = None
    of_all: int | None = None
    start: int | None = None
    cached: int = 0
    ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(slots=True)
class _Tally:
    """How often something was found, where first, and how many rows it was."""

    count: int = 0
    first: str = ""
    rows: int = 0

    def add(self, name: str, rows: int = 0) -> None:
        self.first = self.first or name
        self.count, self.rows = self.count + 1, self.rows + rows


class _Note(Protocol):
    def __call__(self, kind: str, name: str, rows: int = 0) -> None: ...


def place(source: Path, responses: Many[Many[Part]]) -> tuple[list[Sequence], list[str]]:
    """The requests that responses stand for, and notes; each response is one or several texts of one prompt.

    Raises ImportFormatError when no response's rows fit its counts.
    """
    tally: dict[str, _Tally] = {}

    def note(kind: str, name: str, rows: int = 0) -> None:
        tally.setdefault(kind, _Tally()).add(name, rows)

    placed: list[Sequence] = []
    for parts in responses:
        if len(parts) > 1 and parts[0].prompt is not None and parts[0].of_all is not None:
            fed = len(parts) * (parts[0].prompt - 1) + parts[0].of_all
            if all(part.start is None for part in parts) and fed != sum(len(part.routed) for part in parts):
                note("together", parts[0].name)
        shared: NDArray[Any] | None = None  # the prompt's rows of the first text
        for part in parts:
            first = _first_position(part, note)
            if first is None:
                continue
            prompt = part.prompt or 0
            routed, skip = part.routed, max(0, min(part.cached, prompt) - first)
            skip = min(skip, len(routed))
            if skip:
                note("cached", part.name, skip)
            inside = min(max(0, prompt - first), len(routed))
            if shared is not None and inside and np.array_equal(shared, routed[:inside]):
                note("shared", part.name, inside - skip)
                skip = inside
            shared = routed[:inside] if shared is None else shared
            if part.prompt is None:
                note("unknown", part.name)
            ids = part.ids[first + skip : first + len(routed)]
            known = len(ids) == len(routed) - skip and len(ids) > 0
            placed.append(
                Sequence(
                    part.name,
                    routed[skip:],
                    inside - min(skip, inside),
                    first + skip,
                    ids if known else None,
                )
            )
    notes = [_sentence(kind, found) for kind, found in tally.items()]
    if "misfit" in tally and not placed:
        raise ImportFormatError(
            f"{source}: {_sentence('misfit', tally['misfit'])}: give what the engine returned whole"
        )
    return placed, notes


def _first_position(part: Part, note: _Note) -> int | None:
    """The position of the first row; None where the rows cannot be placed."""
    rows, told = len(part.routed), part.start or 0
    if part.prompt is None or part.generated is None:
        return told
    fed = part.prompt + max(0, part.generated - 1)
    lacking = fed - told - rows
    if lacking == 0:
        return told
    if lacking == -1:  # engines that count the last token, too
        note("surplus", part.name)
        return told
    if 0 < lacking <= part.prompt and part.start is None:
        note("start", f"{part.name}, from position {lacking}")
        return lacking
    note("misfit", f"{part.name}: {rows} rows for a prompt of {part.prompt} and {part.generated} generated tokens")
    return None


def _sentence(kind: str, found: _Tally) -> str:
    return {
        "together": f"{found.count} responses of several texts hold not the rows that their counts say and were taken "
        f"as they are (first: {found.first})",
        "cached": f"{found.rows} tokens of cached prefixes in {found.count} responses went through no expert and were "
        "left out",
        "shared": f"{found.rows} prompt tokens of {found.count} further texts of the same prompt repeat the first "
        "text's and were left out: the prompt went through the model once",
        "unknown": f"{found.count} responses: where the prompt ends is unknown: every token is taken as generated",
        "surplus": f"{found.count} responses hold one row more than tokens that were fed (first: {found.first})",
        "start": f"{found.count} responses hold fewer rows than tokens went through the model and were taken to begin "
        f"later (first: {found.first})",
        "misfit": f"{found.count} responses were left out, for their rows fit no start in their tokens (first: "
        f"{found.first})",
    }[kind]
