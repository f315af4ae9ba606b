"""Router dumps as JSON lines, as hooks on a gate of transformers, Megatron or an engine write them.

A line for each token and layer; the first name is the plain one, the others are read as the same:

    layer      (layer_id, layer_idx, layer_number)                         the model's layer
    ids        (experts, expert_ids, topk_ids, topk_idx, topk_experts, topk_indices, indices, selected_experts)
    weights    (topk_weights, topk_weight, expert_weights, scores, probs)  optional, as many as ids
    token      (token_idx, token_index, token_pos, position, pos)          optional, the token's place
    request    (request_id, req_id, prompt, prompt_id, sample, sample_id, batch_id, sequence)   optional, number or text
    phase      "prefill" or "decode", or 0 or 1                            optional; decode

or a line for each layer of a forward pass, with a list of ids (and of weights) per token. Other names are ignored, and
lines with a "type" but no layer (a header) are skipped.

Without `token`, a layer's lines are its request's tokens in order. Where token numbers start again at 0 in the same
request and layer, another forward pass begins: its tokens follow those before. The first pass, if it is of several
tokens, is the prompt; a note says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tracekit.errors import ImportFormatError, did_you_mean
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.lines import Lines
from tracekit.importers.sequences import assemble
from tracekit.rows import DECODE, PREFILL
from tracekit.shards import installed_memory

_NAMES = {
    "layer": ("layer", "layer_id", "layer_idx", "layer_number"),
    "ids": (
        "ids",
        "experts",
        "expert_ids",
        "topk_ids",
        "topk_idx",
        "topk_experts",
        "topk_indices",
        "indices",
        "selected_experts",
    ),
    "weights": ("weights", "topk_weights", "topk_weight", "expert_weights", "scores", "probs"),
    "token": ("token", "token_idx", "token_index", "token_pos", "position", "pos"),
    "request": (
        "request",
        "request_id",
        "req_id",
        "prompt",
        "prompt_id",
        "sample",
        "sample_id",
        "batch_id",
        "sequence",
    ),
    "phase": ("phase",),
}
_MEANING = {name: key for key, names in _NAMES.items() for name in names}
_PHASES = {"prefill": PREFILL, "decode": DECODE, PREFILL: PREFILL, DECODE: DECODE}
_LONGEST_LINE = 256 << 20
_INFLATION = 12  # bytes of columns made of one byte of JSON, at worst


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a router dump, see the module's text; ImportFormatError when it is none."""
    size = source.stat().st_size
    if size * _INFLATION > installed_memory():
        raise ImportFormatError(f"{source} has {size >> 20} MiB, too large to import on this machine: split it")
    dump = _Dump(source)
    for number, line in _lines(source):
        dump.line(number, line)
    return dump.imported(options)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    with source.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise ImportFormatError(f"{source}, line {number} is longer than {_LONGEST_LINE >> 20} MiB: not a dump")
            if line.strip():
                yield number, line


@dataclass(slots=True)
class _Count:
    """The tokens of one request at one layer: where the current pass begins, how many there are, passes so far."""

    base: int = 0
    tokens: int = 0
    passes: int = 1
    first: int = 0  # tokens of the first pass, once another began
    zero: bool = False  # whether token 0 of the current pass has come


class _Dump:
    """What the lines so far say."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.lines = Lines(source)
        self.requests: dict[str | int, int] = {}
        self.prompt: dict[int, int] = {}  # tokens of each request's prompt, where lines say the phase
        self.counts: dict[tuple[int, int], _Count] = {}  # by request and layer
        self.numbered: bool | None = None
        self.phased = False

    def line(self, number: int, line: bytes) -> None:
        where = f"{self.source}, line {number}"
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ImportFormatError(f"{where} is not JSON (truncated?): {error}") from None
        if not isinstance(entry, dict):
            raise ImportFormatError(f"{where} is not a JSON object")
        found = {_MEANING[name]: value for name, value in reversed(entry.items()) if name in _MEANING}
        if "layer" not in found and "ids" not in found and "type" in entry:
            return
        for needed in ("layer", "ids"):
            if needed not in found:
                has = ", ".join(str(name)[:30] for name in list(entry)[:12]) or "nothing"
                close = next((hint for name in entry if (hint := did_you_mean(str(name), _NAMES[needed]))), "")
                raise ImportFormatError(f"{where} has no {needed} (it has: {has}){close}")
        layer = _integer(where, "layer", found["layer"])
        request = self._request(where, found.get("request", 0))
        token = None if found.get("token") is None else _integer(where, "token", found["token"])
        for offset, (ids, weights) in enumerate(_choices(where, found["ids"], found.get("weights"))):
            place = self._place(where, request, layer, None if token is None else token + offset)
            if "phase" in found:
                self._phase(where, request, place, found["phase"])
            self.lines.add(number, request, place, layer, ids, weights)

    def _request(self, where: str, value: Any) -> int:
        if not isinstance(value, str | int):
            raise ImportFormatError(f"{where}: request is {str(value)[:40]!r}, expected a number or a text")
        return self.requests.setdefault(value, len(self.requests))

    def _place(self, where: str, request: int, layer: int, token: int | None) -> int:
        """The token's place in its request: its number, counted on where numbers start again."""
        if self.numbered is None:
            self.numbered = token is not None
        if self.numbered != (token is not None):
            raise ImportFormatError(f"{where}: some lines number their tokens and some do not")
        count = self.counts.setdefault((request, layer), _Count())
        if token is None:
            token = count.tokens
        elif token == 0:
            if count.zero:
                count.base, count.first = count.tokens, count.first or count.tokens
                count.passes += 1
            count.zero = True
        place = count.base + token
        count.tokens = max(count.tokens, place + 1)
        return place

    def _phase(self, where: str, request: int, place: int, phase: Any) -> None:
        if not isinstance(phase, str | int) or phase not in _PHASES:
            raise ImportFormatError(f"{where}: phase is {str(phase)[:40]!r}, expected prefill or decode")
        self.phased = True
        if _PHASES[phase] == PREFILL:
            self.prompt[request] = max(self.prompt.get(request, 0), place + 1)

    def imported(self, options: ImportOptions) -> Imported:
        """The trace of all lines."""
        notes = []
        again = {request for (request, _), count in self.counts.items() if count.passes > 1}
        if again:
            notes.append(f"token numbers start again in {len(again)} requests: each start was taken as a forward pass")
        if again and not self.phased:
            self.prompt = {request: count.first for (request, _), count in self.counts.items() if count.first > 1}
        elif not self.phased:
            notes.append("no phases: every token is taken as generated")
        prompt = np.array([self.prompt.get(request, 0) for request in range(len(self.requests))], np.int64)
        names = [f"request {str(name)[:40]}" for name in self.requests]
        sequences, layers = self.lines.sequences(names, prompt)
        return assemble(self.source, "jsonl", sequences, options, moe_layers=layers, notes=notes)


def _choices(where: str, ids: Any, weights: Any) -> Iterator[tuple[list[int], list[float] | None]]:
    """The choices of one line: one, or one for each token of a pass."""
    if not isinstance(ids, list) or not ids:
        raise ImportFormatError(f"{where}: ids is not a list of experts")
    if not isinstance(ids[0], list):
        yield _ids(where, ids), None if weights is None else _weights(where, weights)
        return
    if weights is not None and (not isinstance(weights, list) or len(weights) != len(ids)):
        raise ImportFormatError(f"{where}: ids and weights are of different numbers of tokens")
    for number, choice in enumerate(ids):
        yield _ids(where, choice), None if weights is None else _weights(where, weights[number])


def _ids(where: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value or any(type(expert) is not int for expert in value):
        raise ImportFormatError(f"{where}: expert ids are not a list of integers")
    return value


def _weights(where: str, value: Any) -> list[float]:
    if not isinstance(value, list) or any(type(weight) not in (int, float) for weight in value):
        raise ImportFormatError(f"{where}: weights are not a list of numbers")
    try:
        return [float(weight) for weight in value]
    except OverflowError:
        raise ImportFormatError(f"{where}: a weight is too large") from None


def _integer(where: str, name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ImportFormatError(f"{where}: {name} is {str(value)[:40]!r}, expected a number from 0 on")
    return value
