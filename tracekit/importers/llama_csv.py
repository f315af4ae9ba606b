"""Routing logs of llama.cpp: CSV files of its `moe-trace` example and of its relatives.

    layer,expert                    one line per routed activation, in the order the graph ran: for each micro-batch,
                                    for each layer, for each token, its experts (examples/moe-trace)
    layer_id,expert_ids             one line per token and layer, the ids separated by blanks
    phase,token,layer,rank,expert   one line per activation, `token` the place in its one sequence

The first two do not say where tokens end: lines of one layer that follow each other are one micro-batch, and the
smallest such group is a decode step, whose length is top-k (--top-k says it otherwise). A group of several tokens is a
prefill micro-batch; each is a forward pass of its own. At the last layer llama.cpp computes only the tokens whose
output is asked for: those before them have no routing there. A header line in the middle (`cat a.csv b.csv`) begins
another request, as does, in the third layout, a prefill after a decode. There are no weights.

The first release of moe-trace read its tensor without its stride: from the second token of a prefill micro-batch on,
ids may be wrong, and a note says so wherever there are any. Source: ggml-org/llama.cpp pull request 28544 and a fork's
examples/moe-trace/README.md.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.lines import Lines
from tracekit.importers.microbatches import Groups, tokens_of
from tracekit.importers.passes import phases_of
from tracekit.importers.saved import lines_of, read_text
from tracekit.importers.sequences import Sequence, assemble
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K
from tracekit.rows import PREFILL

_FLAT = ("layer", "expert")
_LISTED = ("layer_id", "expert_ids")
_RANKED = ("phase", "token", "layer", "rank", "expert")
_STRIDE = "prefill of the first moe-trace release may hold wrong ids after the first token of a micro-batch"
_INFLATION = 8


def read(source: Path, options: ImportOptions) -> Imported:
    """Read a routing log, see the module's text; ImportFormatError when it is none."""
    data = read_text(source, _INFLATION)
    header = _fields(data[: data.find(b"\n") if b"\n" in data[:1000] else 1000].decode("utf-8", "replace"))
    if header == _RANKED:
        return _ranked(source, data, options)
    if header not in (_FLAT, _LISTED) and not _numbers(header):
        known = " or ".join(",".join(names) for names in (_FLAT, _LISTED, _RANKED))
        raise ImportFormatError(
            f"{source} is not a routing log: its first line is {','.join(header)[:60]!r}, not {known}"
        )
    return _grouped(source, data, options, listed=header == _LISTED)


def is_header(line: str) -> bool:
    """Whether a log may begin with this line."""
    fields = _fields(line)
    return fields in (_FLAT, _LISTED, _RANKED) or (len(fields) == 2 and _numbers(fields))


def _numbers(fields: tuple[str, ...]) -> bool:
    return all(field.isdecimal() for field in fields)


def _fields(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.strip().split(","))


def _lines(source: Path, data: bytes) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, line in lines_of(source, data):
        yield number, _fields(line.decode("utf-8", "replace"))


def _number(source: Path, line: int, name: str, text: str, limit: int) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 12 and int(text) < limit):
        raise ImportFormatError(f"{source}, line {line}: {name} is {text[:30]!r}, expected 0 to {limit - 1}")
    return int(text)


def _grouped(source: Path, data: bytes, options: ImportOptions, *, listed: bool) -> Imported:
    sequences: list[Sequence] = []
    top_k = options.top_k
    prefilled, passes = False, 0
    layers: list[int] | None = None
    for number, groups in enumerate(_requests(source, data, listed)):
        if top_k is None:
            top_k = int(groups.sizes.min())
            if len(set(groups.layers)) < 2:
                raise ImportFormatError(f"{source} has one layer: give --top-k, for nothing else says where tokens end")
        found = sorted(set(groups.layers))
        layers = layers or found
        if found != layers:
            raise ImportFormatError(f"{source}: request {number} has other layers than the first: import them apart")
        experts, step = tokens_of(source, f"request {number}", groups, layers, top_k)
        phase = phases_of(step, experts, alone=True)
        prefilled |= bool((phase == PREFILL).any())
        sequences.append(Sequence(f"request {number}", experts, steps=passes + step, phase=phase))
        passes += int(step[-1]) + 1
    if not sequences or top_k is None:
        raise ImportFormatError(f"{source} holds no routing lines")
    notes = [_STRIDE] if prefilled and not listed else []
    if options.top_k is None:
        notes.append(f"top-{top_k} taken from the smallest group of lines; --top-k says it for certain")
    return assemble(source, "llama-csv", sequences, options, moe_layers=layers, notes=notes)


def _requests(source: Path, data: bytes, listed: bool) -> Iterator[Groups]:
    """The micro-batches of each request: up to the next header line."""
    ids: array[int] = array("i")
    groups, current, start = Groups(ids), -1, 0

    def close() -> None:
        if len(ids) > start:
            groups.add(current, start, len(ids))

    for line, fields in _lines(source, data):
        if fields in (_FLAT, _LISTED):
            close()
            if len(groups):
                yield groups
            ids = array("i")
            groups, current, start = Groups(ids), -1, 0
            continue
        if len(fields) != 2:
            raise ImportFormatError(f"{source}, line {line}: {len(fields)} fields, expected 2 (truncated?)")
        layer = _number(source, line, "layer", fields[0], MAX_LAYERS)
        if layer != current:
            close()
            current, start = layer, len(ids)
        chosen = fields[1].split() if listed else [fields[1]]
        ids.extend(_number(source, line, "expert", text, MAX_EXPERTS) for text in chosen[: MAX_TOP_K + 1])
    close()
    if len(groups):
        yield groups


def _ranked(source: Path, data: bytes, options: ImportOptions) -> Imported:
    """The layout that says everything: gathered as lines of one activation each."""
    table = Lines(source)
    requests, prompt, decoding = 0, [0], False
    pending: tuple[int, int, int, int] | None = None  # first line, request, token, layer
    chosen: list[int] = []
    for line, fields in _lines(source, data):
        if fields == _RANKED:
            continue
        if len(fields) != len(_RANKED):
            raise ImportFormatError(f"{source}, line {line}: {len(fields)} fields, expected 5 (truncated?)")
        if fields[0] not in ("prefill", "decode"):
            raise ImportFormatError(f"{source}, line {line}: phase is {fields[0][:30]!r}, expected prefill or decode")
        token = _number(source, line, "token", fields[1], 2**31)
        layer = _number(source, line, "layer", fields[2], MAX_LAYERS)
        rank = _number(source, line, "rank", fields[3], MAX_TOP_K)
        if fields[0] == "prefill" and decoding:
            requests += 1
            prompt.append(0)
        decoding = fields[0] == "decode"
        if not decoding:
            prompt[-1] = max(prompt[-1], token + 1)
        if rank == 0 and pending is not None:
            table.add(*pending, chosen, None)
        if rank == 0:
            pending, chosen = (line, requests, token, layer), []
        if pending is None or pending[1:] != (requests, token, layer) or rank != len(chosen):
            raise ImportFormatError(f"{source}, line {line}: rank {rank} does not follow the line before")
        chosen.append(_number(source, line, "expert", fields[4], MAX_EXPERTS))
    if pending is not None:
        table.add(*pending, chosen, None)
    names = [f"request {number}" for number in range(requests + 1)]
    sequences, layers = table.sequences(names, np.array(prompt))
    return assemble(source, "llama-csv", sequences, options, moe_layers=layers)
