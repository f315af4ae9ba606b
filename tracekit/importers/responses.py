"""JSON responses of serving engines, read as documents: saved whole, a line each, or as a stream of events."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tracekit.errors import ImportFormatError
from tracekit.importers.saved import lines_of, read_text
from tracekit.json_text import lone_surrogate, why_not_json

_INFLATION = 8  # bytes of Python objects made of one byte of JSON, at worst
_HOLDERS = ("choices", "meta_info", "sglext", "sgl_ext", "nvext")
_ROUTING = ("routed_experts", "prompt_routed_experts", "router_data")

Document = dict[str, Any]


class Documents:
    """The responses in a file, each with its name for messages, read one by one as they are gone through.

    One JSON object, a JSON list of them, an object per line, or server-sent events; a response has one of the keys
    `expected`. Lists of routing in it stay JSON (`msgspec.Raw`): as Python's they would take many times their room.
    Refused requests among others are left out. Afterwards `names` are those of the responses, `first` some keys of the
    first, and `notes` say what was left out. Raises ImportFormatError where the file is something else.
    """

    def __init__(self, source: Path, expected: tuple[str, ...]) -> None:
        self.source, self.expected = source, expected
        self.names: list[str] = []
        self.first: list[str] = []
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        refused, reason = 0, ""
        for name, item in _items(self.source, read_text(self.source, _INFLATION)):
            if not isinstance(item, dict):
                raise ImportFormatError(f"{self.source}: {name} is not a JSON object: expected an engine's responses")
            if any(item.get(key) is not None for key in self.expected):
                self.names.append(name)
                self.first = self.first or [str(key)[:30] for key in list(item)[:12]]
                yield name, item
            elif item.get("object") == "error" or item.get("error"):
                refused, reason = refused + 1, reason or f"{name}: {_reason(item)}"
            else:
                wanted = " or ".join(self.expected)
                raise ImportFormatError(f"{self.source}: {name} has no {wanted}: {_what(item, self.expected)}")
        if refused and not self.names:
            raise ImportFormatError(f"{self.source} holds refused requests only ({reason})")
        if refused:
            self.notes.append(f"{refused} refused requests were left out ({reason})")


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
    head = data[:1000].lstrip()
    if head.startswith((b"data:", b"event:")):
        yield from _events(source, data)
        return
    try:
        if head.startswith(b"["):
            whole = msgspec.json.decode(data, type=list[msgspec.Raw])
        else:
            whole = [msgspec.json.decode(data, type=msgspec.Raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield from _lines(source, data, str(error))
        return
    try:
        for number, item in enumerate(_flat(whole)):
            yield f"response {number}", _opened(item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImportFormatError(f"{source} is not JSON: {error}") from None


def _flat(items: Iterable[msgspec.Raw]) -> Iterator[msgspec.Raw]:
    for item in items:  # batches of batches, as saved call by call
        if _begins(item) == b"[":
            yield from msgspec.json.decode(item, type=list[msgspec.Raw])
        else:
            yield item


def _begins(value: msgspec.Raw) -> bytes:
    return bytes(memoryview(value)[:16]).lstrip()[:1]


def _opened(value: msgspec.Raw) -> Any:
    """A JSON value as Python's, but for lists of routing."""
    begin = _begins(value)
    if begin == b"[":
        return [_opened(item) for item in msgspec.json.decode(value, type=list[msgspec.Raw])]
    if begin != b"{":
        return msgspec.json.decode(value)
    found: Document = {}
    for key, inner in msgspec.json.decode(value, type=dict[str, msgspec.Raw]).items():
        if key in _ROUTING and _begins(inner) == b"[":
            found[key] = inner
        else:
            found[key] = _opened(inner) if key in _HOLDERS else msgspec.json.decode(inner)
    return found


def _lines(source: Path, data: bytes, why: str) -> Iterator[tuple[str, Any]]:
    for number, line in lines_of(source, data):
        try:
            parts = [_opened(part) for part in _flat([msgspec.json.decode(line, type=msgspec.Raw)])]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == 1 and lone_surrogate(line) is None:
                raise ImportFormatError(f"{source} is not JSON: {why}") from None
            raise ImportFormatError(f"{source}: line {number} {why_not_json(line, error)}") from None
        for part in parts:
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
            chunk = _opened(msgspec.json.decode(value, type=msgspec.Raw))
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
