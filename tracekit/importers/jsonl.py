"""Router dumps as JSON lines, as hooks on a gate of transformers, Megatron or an engine write them; or as Parquet.

A line for each token and layer; the first name is the plain one, `fields.NAMES` lists those that are read as the same:

    layer      the model's layer
    ids        the experts
    weights    optional, as many as ids
    token      optional, the token's number
    request    optional, number or text; --request-field names the field where it is called otherwise
    phase      prefill (prompt) or decode (generated), or 0 or 1; optional
    step       optional, the forward pass
    token_id   optional, of the vocabulary

or a line for each layer of a forward pass, with a list of ids (and of weights) per token. Other names are ignored. A
line with neither layer nor ids is a header: its model and number of experts are used, and where one comes in the middle
(a log that was appended to) other requests begin. Parquet files have the same fields as columns, and no header.

Tokens that a log shows to have gone through the model together share a step (`passes`): where it numbers steps, lists
all tokens of a pass in one line, starts token numbers again, or goes layer by layer through several tokens. What shows
nothing is taken token by token, the prompt, where there are phases, in one step. Without `token`, a layer's lines are
its request's tokens in order.

Of lines that several ranks wrote, those of the first are kept if the others are the same. Megatron's multi-token
prediction (`block` is mtp) is left out. Sources: Megatron-LM's core/transformer/moe/router_trace.py; moe-policylang's
integrations/trace_recorder.py; birkansit/moe-cache-lab TRACE_FORMAT.md, version 1; gate logs of vLLM by
weiran0129/vLLM-MoE-Logger, TotaniYash/vllm_moe_routelogging_patch and KennethWang1221/vllm-expert-profiler.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.decoding import guarded
from tracekit.errors import ImportFormatError, did_you_mean
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.fields import EXPERTS, MEANING, MODEL, NAMES, PHASES, Unread
from tracekit.importers.lines import Lines
from tracekit.importers.passes import Passes, find_passes
from tracekit.importers.saved import lines_of, read_text
from tracekit.importers.sequences import Sequence, assemble
from tracekit.json_text import why_not_json
from tracekit.opening import checked
from tracekit.rows import PREFILL
from tracekit.shards import installed_memory

_INFLATION = 12  # bytes of columns made of one byte of JSON, at worst
_NO_FIELD = "none"  # what --request-field says where nothing tells requests apart
_ROWS = 1 << 16  # of a Parquet file looked at at once
_FEW_ROWS, _ROWS_PER_BYTE = 1 << 20, 16  # real choices differ from row to row: two or three rows take a byte

_Owner = tuple[int, int, str | int]
"""Whose tokens lines are: the run of the log, the rank, and the request."""


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a router dump, see the module's text; ImportFormatError when it is none."""
    dump = _Dump(source, options)
    for number, line in lines_of(source, read_text(source, _INFLATION)):
        dump.line(number, line)
    return dump.imported("jsonl")


def read_parquet(source: Path, options: ImportOptions) -> Imported:
    """Read a router dump in a Parquet file, a row where the others have a line."""
    import polars as pl

    if source.stat().st_size * _INFLATION > installed_memory():
        raise ImportFormatError(f"{source} is too large to import on this machine: split it")
    dump = _Dump(source, options)
    try:
        frame = pl.scan_parquet(checked(source), glob=False)
        with guarded(source):
            schema = frame.collect_schema()
            rows = frame.select(pl.len()).collect().item()
        size = source.stat().st_size
        if rows > max(_FEW_ROWS, _ROWS_PER_BYTE * size):
            raise ImportFormatError(f"{source} announces {rows} rows in {size >> 10} KiB: refused as too large")
        # Of what means nothing, numbers and texts are read: they may tell requests apart.
        used = [
            name
            for name, kind in schema.items()
            if name in MEANING or name == options.request_field or kind.is_integer() or kind == pl.String()
        ]
        dump.unread.names.update(dict.fromkeys(name[:40] for name in schema if name not in used))
        for first in range(0, rows, _ROWS):
            with guarded(source):
                part = frame.select(used).slice(first, _ROWS).collect()
            for number, row in enumerate(part.iter_rows(named=True)):
                dump.entry(f"{source}, row {first + number}", first + number, row)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ImportFormatError(f"{source} is not a readable Parquet file: {reason[:200]}") from None
    return dump.imported("parquet")


class _Dump:
    """What the lines so far say."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        self.source, self.options, self.asked = source, options, options.request_field
        self.lines = Lines(source)
        self.unread = Unread()
        self.owners: dict[_Owner, int] = {}
        self.header: dict[str, Any] = {}
        self.runs = 0  # of the log, so far
        self.fresh = False  # whether a header was the last line
        self.numbered: bool | None = None
        self.phase: array[int] = array("b")
        self.step: array[int] = array("q")
        self.predicted = 0  # lines of layers that predict further tokens

    def line(self, number: int, line: bytes) -> None:
        where = f"{self.source}, line {number}"
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ImportFormatError(f"{where} {why_not_json(line, error)}") from None
        if not isinstance(entry, dict):
            raise ImportFormatError(f"{where} is not a JSON object")
        self.entry(where, number, entry)

    def entry(self, where: str, number: int, entry: dict[str, Any]) -> None:
        """One line's fields."""
        found: dict[str, Any] = {}
        for name, value in reversed(entry.items()):
            meaning = MEANING.get(name)
            if meaning is not None and (meaning not in found or len(name) > 1):  # short names say least
                found[meaning] = value
        if "layer" not in found and "ids" not in found and self._header(entry):
            return
        if entry.get("block") == "mtp":
            self.predicted += 1
            return
        for needed in ("layer", "ids"):
            if needed not in found:
                self._refuse(where, entry, needed)
        if self.asked == _NO_FIELD:
            found["request"] = 0
        elif self.asked is not None:
            if self.asked not in entry:
                raise ImportFormatError(f"{where} has no {self.asked[:40]}, which --request-field names")
            found["request"] = entry[self.asked]
        self.runs += self.fresh
        self.fresh = False
        layer = _integer(where, "layer", found["layer"])
        owner = self._owner(where, found)
        token, token_id, step = (
            -1 if found.get(name) is None else _integer(where, name, found[name])
            for name in ("token", "token_id", "step")
        )
        if self.numbered is None:
            self.numbered = token >= 0
        if self.numbered != (token >= 0):
            raise ImportFormatError(f"{where}: some lines number their tokens and some do not")
        phase = -1 if found.get("phase") is None else _phase(where, found["phase"])
        rows = 0
        for offset, (ids, weights) in enumerate(_choices(where, found["ids"], found.get("weights"))):
            self.lines.add(number, owner, token + offset if token >= 0 else -1, layer, ids, weights, token_id)
            rows += 1
        self.phase.extend([phase] * rows)
        self.step.extend([step] * rows)
        self.unread.add({name: value for name, value in entry.items() if name != self.asked}, rows)

    def _header(self, entry: dict[str, Any]) -> bool:
        """Whether a line without routing is a header or an event, rather than none of a dump."""
        named = any(name in entry for name in MODEL)
        if not named and "type" not in entry and "record_type" not in entry and (self.header or self.lines.line):
            return False
        self.fresh = self.fresh or (named and bool(self.lines.line))
        self.header = self.header or entry
        return True

    def _refuse(self, where: str, entry: dict[str, Any], needed: str) -> None:
        has = ", ".join(str(name)[:30] for name in list(entry)[:12]) or "nothing"
        close = next((hint for name in entry if (hint := did_you_mean(str(name), NAMES[needed]))), "")
        raise ImportFormatError(f"{where} has no {needed} (it has: {has}){close}")

    def _owner(self, where: str, found: dict[str, Any]) -> int:
        request, rank = found.get("request", 0), found.get("rank", 0)
        if not isinstance(request, str | int):
            raise ImportFormatError(f"{where}: request is {str(request)[:40]!r}, expected a number or a text")
        return self.owners.setdefault((self.runs, rank if type(rank) is int else 0, request), len(self.owners))

    def imported(self, format_name: str) -> Imported:
        """The trace of all lines."""
        if not self.lines.line:
            has = f" (its first line has: {', '.join(map(str, list(self.header)[:12]))})" if self.header else ""
            raise ImportFormatError(f"{self.source} holds no routing{has[:200]}")
        request, layer, token, line = (
            np.frombuffer(part, np.int64)
            for part in (self.lines.request, self.lines.layer, self.lines.token, self.lines.line)
        )
        phase, step = np.frombuffer(self.phase, np.int8), np.frombuffer(self.step, np.int64)
        passes = find_passes(request, layer, token, line, step if (step >= 0).all() else None, phase)
        self._check_requests(passes)
        names = [f"request {str(name)[:40]}" for _, _, name in self.owners]
        prompt = np.zeros(len(names), np.int64)
        np.maximum.at(prompt, request[phase == PREFILL], passes.place[phase == PREFILL] + 1)
        alone = len({request for _, _, request in self.owners}) > 1 or self.asked not in (None, _NO_FIELD)
        sequences, layers = self.lines.sequences(names, prompt, passes, phase, alone=alone)
        sequences, copies = self._first_rank(sequences)
        experts = next((self.header[name] for name in EXPERTS if type(self.header.get(name)) is int), None)
        model = next((self.header[name] for name in MODEL if isinstance(self.header.get(name), str)), None)
        return assemble(
            self.source,
            format_name,
            sequences,
            self.options,
            moe_layers=layers,
            model=model,
            stated=experts if experts and experts > 0 else None,
            notes=[*self._notes(passes, request), *copies],
        )

    def _check_requests(self, passes: Passes) -> None:
        """Refuse numbers that start again with a field that was not read: it may well be that of requests."""
        if passes.number is None or passes.how != "restarts" or self.asked is not None:
            return
        if telling := self.unread.telling(passes.number):
            raise ImportFormatError(
                f"{self.source}: token numbers start again where {', '.join(telling[:4])} changes: --request-field "
                f"{telling[0]} if that tells requests apart, --request-field none if nothing does"
            )

    def _first_rank(self, sequences: list[Sequence]) -> tuple[list[Sequence], list[str]]:
        """The sequences without those that another rank wrote once more."""
        kept: dict[tuple[int, str | int], tuple[int, Sequence]] = {}
        for (run, rank, request), sequence in zip(self.owners, sequences, strict=True):
            first, same = kept.setdefault((run, request), (rank, sequence))
            if first != rank and not np.array_equal(same.experts, sequence.experts):
                raise ImportFormatError(
                    f"{self.source}: ranks {first} and {rank} hold different rows of one request: import each rank's "
                    "lines alone"
                )
        copies = len(sequences) - len(kept)
        told = [f"{copies} requests are copies by other ranks and were left out"] if copies else []
        return [sequence for _, sequence in kept.values()], told

    def _notes(self, passes: Passes, request: NDArray[np.int64]) -> list[str]:
        notes = []
        unphased = any(phase < 0 for phase in self.phase)
        if passes.number is not None and passes.how == "restarts":
            own = np.unique(np.stack([request, passes.number]), axis=1)[0]  # the passes of each request
            again = int((np.bincount(own) > 1).sum())
            notes.append(f"token numbers start again in {again} requests: each start was taken as a forward pass")
        if passes.how == "order":
            once = passes.number is not None and not passes.number.any()
            mend = ": if it was sorted by layer afterwards, sort it by token" if once else ""
            notes.append(f"the log goes layer by layer: tokens of a turn were taken as one forward pass{mend}")
        if passes.how == "nothing" and unphased:
            notes.append("no phases and no passes: every token is taken as generated, in a forward pass of its own")
        elif unphased:
            notes.append("no phases: they are inferred from how many tokens passes have")
        if self.runs:
            notes.append(f"the log holds {self.runs + 1} runs, each with its header: their requests are kept apart")
        if 0 < len(self.lines.weights) < len(self.lines.ids):
            notes.append("only some lines have weights: they were left out")
        if self.predicted:
            notes.append(f"{self.predicted} lines of multi-token prediction were left out")
        notes += self.unread.notes()
        if passes.number is not None and passes.how in ("lists", "order"):
            telling = self.unread.telling(passes.number)
            notes += [f"not read, though they change with forward passes: {', '.join(telling[:8])}"] if telling else []
        return notes


def _phase(where: str, phase: Any) -> int:
    if not isinstance(phase, str | int) or phase not in PHASES:
        raise ImportFormatError(f"{where}: phase is {str(phase)[:40]!r}, expected prefill or decode")
    return PHASES[phase]


def _choices(where: str, ids: Any, weights: Any) -> Iterator[tuple[list[int], list[float] | None]]:
    """The choices of one line: one, or one for each token of a pass."""
    weights = None if weights == [] else weights
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
