"""JSON responses of serving engines, read as documents: saved whole, a line each, or as a stream of events."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tracekit.errors import ImportFormatError
from tracekit.importers.saved import lines_of, read_text
from tracekit.json_text import lone_surrogate, why_not_json

_INFLATION = 24  # bytes of Python objects made of one byte of JSON, at worst

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Documents:
    """Responses, each with its name for messages, and what was said of the others."""

    found: list[tuple[str, Document]]
    notes: list[str]


def read_documents(source: Path, expected: tuple[str, ...]) -> Documents:
    """Every response in a file: one JSON object, a JSON list of them, an object per line, or server-sent events.

    A response has one of the keys `expected`. Refused requests among others are left out, with a note. Raises
    ImportFormatError where the file is something else.
    """
    documents = Documents([], [])
    refused: list[str] = []
    for name, item in _items(source, read_text(source, _INFLATION)):
        if not isinstance(item, dict):
            raise ImportFormatError(f"{source}: {name} is not a JSON object: expected an engine's responses")
        if any(item.get(key) is not None for key in expected):
            documents.found.append((name, item))
        elif item.get("object") == "error" or item.get("error"):
            refused.append(f"{name}: {_reason(item)}")
        else:
            raise ImportFormatError(f"{source}: {name} has no {' or '.join(expected)}: {_what(item, expected)}")
    if refused:
        if not documents.found:
            raise ImportFormatError(f"{source} holds refused requests only ({refused[0]})")
        documents.notes.append(f"{len(refused)} refused requests were left out ({refused[0]})")
    return documents


def _reason(item: Document) -> str:
    error = item.get("error")
    told = error.get("message") if isinstance(error, dict) else error
    return str(told if isinstance(told, str) else item.get("message", "error"))[:80]


def _what(item: Document, expected: tuple[str, ...]) -> str:
    """What there is instead, for a message."""
    for key, value in item.items():
        inside = value.get("body", value) if isinstance(value, dict) else None
        if isinstance(inside, dict) and any(name in inside for name in expected):
            return f"its {str(key)[:40]!r} holds a response; save that alone"
    has = ", ".join(str(name)[:30] for name in list(item)[:8]) or "nothing"
    return f"expected an engine's response (it has: {has})"


def _items(source: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    if data.lstrip()[:6] in (b"data: ", b"event:") or data.lstrip()[:5] == b"data:":
        yield from _events(source, data)
        return
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield from _lines(source, data, str(error))
        return
    for number, item in enumerate(_flat(whole if isinstance(whole, list) else [whole])):
        yield f"response {number}", item


def _flat(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:  # batches of batches, as saved call by call
        if isinstance(item, list):
            yield from item
        else:
            yield item


def _lines(source: Path, data: bytes, why: str) -> Iterator[tuple[str, Any]]:
    for number, line in lines_of(source, data):
        try:
            item = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == 1 and lone_surrogate(line) is None:
                raise ImportFormatError(f"{source} is not JSON: {why}") from None
            raise ImportFormatError(f"{source}: line {number} {why_not_json(line, error)}") from None
        for part in _flat([item]):
            yield f"line {number}", part


@dataclass(slots=True)
class _Event:
    """What the events of one response have said so far."""

    document: Document = field(default_factory=dict)
    choices: dict[int, Document] = field(default_factory=dict)

    def add(self, chunk: Document) -> None:
        choices = chunk.get("choices")
        self.document.update((key, value) for key, value in chunk.items() if value is not None)
        for place, choice in enumerate(choices if isinstance(choices, list) else []):
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            held = self.choices.setdefault(index if isinstance(index, int) else place, {})
            tokens = choice.get("token_ids")
            if isinstance(tokens, list) and isinstance(held.get("token_ids"), list):
                choice = choice | {"token_ids": held["token_ids"] + tokens}
            held.update((key, value) for key, value in choice.items() if value is not None)

    def whole(self) -> Document:
        choices = [self.choices[index] for index in sorted(self.choices)]
        return self.document | ({"choices": choices} if choices else {})


def _events(source: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """Server-sent events put together: those of one id are one response; what comes later completes it."""
    responses: dict[Any, _Event] = {}
    for number, line in lines_of(source, data):
        field_name, _, value = line.partition(b":")
        if field_name != b"data" or value.strip() == b"[DONE]":
            continue
        try:
            chunk = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ImportFormatError(f"{source}: the event in line {number} is not JSON: {error}") from None
        if not isinstance(chunk, dict):
            raise ImportFormatError(f"{source}: the event in line {number} is not a JSON object")
        meta = chunk.get("meta_info")
        key = chunk.get("id") or (meta.get("id") if isinstance(meta, dict) else None)
        responses.setdefault(str(key), _Event()).add(chunk)
    for number, event in enumerate(responses.values()):
        yield f"response {number}", event.whole()


def integer(document: Any, *path: str) -> int | None:
    """A count somewhere inside a response; None when it is not there or is none."""
    value = document
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
