"""Known defects of recorded routing, looked for in whatever an importer has read.

Refused, because no gate does it and every replay of it would be wrong:
    an expert listed twice in a row; two layers with the same choices throughout (one layer recorded twice); mostly
    rows of consecutive ids with equal weights (a gate whose scores were lost).
Noted, because it may be real:
    long runs of identical tokens (warm-up, padding), and rows that repeat those before (other ranks' copies, a run
    appended), with the slice that leaves them out; generated tokens of one request that share a pass (a batch whose
    requests the log does not tell apart); some rows of consecutive ids with equal weights; a slot that always holds the
    same expert, or a few that no other slot does (shared experts counted as routed), with the --drop-slot that leaves
    it out; layers without routing for some tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError, TraceError
from tracekit.importers.slots import shared_experts
from tracekit.notes import on_steps
from tracekit.requests import told_apart
from tracekit.rows import UNUSED, check_distinct

if TYPE_CHECKING:
    from tracekit.importers import Imported

_ENOUGH = 16  # below this many tokens, what looks like a defect may be chance
_CHUNK = 1 << 22
_FEW = 4  # notes of one kind
_MOST_COPIES = 16


def inspect(source: Path, imported: "Imported") -> "Imported":
    """`imported` with a note for everything odd; ImportFormatError, naming row and mend, for what cannot be real."""
    from tracekit.importers import Imported

    experts = np.asarray(imported.columns["experts"])
    if experts.ndim != 3 or len(experts) == 0:
        return imported
    _refuse_repeated(source, experts)
    layers = imported.manifest.moe_layers
    steps = _steps(imported.columns, len(experts))
    _refuse_replicated(source, experts, layers, imported.manifest.experts_per_layer)
    notes = [
        *imported.manifest.notes,
        *_identical(experts, steps),
        *_copies(experts, steps),
        *_crowded(imported.columns),
        *_lost_scores(source, experts, imported.columns.get("weights")),
        *shared_experts(experts, imported.manifest.experts_per_layer),
        *_missing(experts, layers),
    ]
    return Imported(msgspec.structs.replace(imported.manifest, notes=notes), imported.columns)


def refuse_ragged(source: Path, rows: dict[int, int]) -> None:
    """Raise ImportFormatError unless every layer has the same number of rows; `rows` by model layer."""
    most = max(rows.values())
    for layer in sorted(rows):
        if rows[layer] != most:
            other = next(number for number in sorted(rows) if rows[number] == most)
            raise ImportFormatError(
                f"{source}: layer {layer} has {rows[layer]} rows, layer {other} has {most}: rows were dropped; "
                "record again without sampling or filtering"
            )


def _refuse_repeated(source: Path, experts: NDArray[Any]) -> None:
    try:
        for start in range(0, len(experts), _rows(experts)):
            part = experts[start : start + _rows(experts)]
            if part.min() >= 0 and part.max() <= UNUSED:  # what is not, the writer refuses by name
                check_distinct(part.astype(np.uint16), start)
    except TraceError as error:
        raise ImportFormatError(
            f"{source}: {error}: not what a gate chooses; leave out padding and shared experts, or record again"
        ) from None


def _refuse_replicated(source: Path, experts: NDArray[Any], layers: list[int], per_layer: list[int]) -> None:
    """Two layers of one choice: their sets are equal at every token, though not the same at all tokens."""
    tokens, count, top_k = experts.shape
    if tokens < _ENOUGH or top_k >= min(per_layer):
        return
    # Sums and sums of squares of the ids are equal whenever the sets are; few layers get past them.
    seen: dict[tuple[int, ...], int] = {}
    for layer in range(count):
        chosen = experts[:, layer].astype(np.int64)
        if (chosen == chosen[0]).all():
            continue
        total = chosen.sum(axis=1)
        key = (int(total.sum()), int((total * np.arange(1, tokens + 1)).sum()), int((chosen**2).sum()))
        earlier = seen.setdefault(key, layer)
        if earlier != layer and _same_sets(experts[:, earlier], experts[:, layer]):
            raise ImportFormatError(
                f"{source}: layers {layers[earlier]} and {layers[layer]} choose the same experts for all {tokens} "
                "tokens: one layer was recorded twice; record each layer's own gate"
            )


def _same_sets(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool((np.sort(one, axis=1) == np.sort(other, axis=1)).all())


def _steps(columns: Mapping[str, Any], tokens: int) -> NDArray[np.int64]:
    """Each row's step; the rows' own numbers where the column is none that a trace may hold, which the writer says."""
    step = np.asarray(columns["step"])
    sound = step.shape == (tokens,) and step.dtype.kind in "iu" and bool((step[1:] >= step[:-1]).all())
    return step.astype(np.int64) if sound else np.arange(tokens)


def _identical(experts: NDArray[Any], step: NDArray[np.int64]) -> list[str]:
    """Runs of rows that are the same at every layer."""
    same = np.zeros(len(experts) + 1, np.bool_)
    for start in range(1, len(experts), rows := _rows(experts)):
        part = experts[start - 1 : start + rows]
        same[start : start + len(part) - 1] = (part[1:] == part[:-1]).all(axis=(1, 2))
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0))
    runs = [(int(a) - 1, int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a + 1 >= _ENOUGH]
    notes = []
    for first, end in runs[:_FEW]:
        if end - first == len(experts):
            return [f"all {end} tokens choose the same experts at every layer: warm-up or padding, not routing"]
        what = f"the first {end} tokens" if not first else f"{end - first} tokens in a row"
        text = f"{what} choose the same experts at every layer: warm-up or padding"
        # Only whole steps can be cut out.
        low = int(step[first]) + (first > 0 and step[first - 1] == step[first])
        high = int(step[end - 1]) + (end == len(step) or step[end] != step[end - 1])
        if low < high:
            notes.append(on_steps(low, high, text, removes=True))
        else:
            notes.append(on_steps(int(step[first]), int(step[end - 1]) + 1, f"{text}, beside others"))
    if len(runs) > _FEW:
        notes.append(f"{len(runs) - _FEW} further runs of tokens that choose the same experts at every layer")
    return notes


def _copies(experts: NDArray[Any], step: NDArray[np.int64]) -> list[str]:
    """Rows that are those before once more: all of them, or a pass's."""
    tokens, layers, _ = experts.shape
    for count in range(_MOST_COPIES, 1, -1):
        block, odd = divmod(tokens, count)
        if odd or block < _ENOUGH or not np.array_equal(experts[0], experts[block]):
            continue
        if (experts[:block] == experts[0]).all():
            continue
        if all(_equal(experts[:block], experts[at : at + block]) for at in range(block, tokens, block)):
            first, end = int(step[block]), int(step[-1]) + 1
            what = f"rows {block} to {tokens - 1} repeat the {block} before: other ranks' copies, or a run again"
            return [on_steps(first, end, what, removes=step[block - 1] != first)]
    starts = np.flatnonzero(np.append(True, step[1:] != step[:-1]))
    sizes = np.diff(np.append(starts, tokens))
    likely = np.flatnonzero((sizes[1:] == sizes[:-1]) & (sizes[1:] > 1) & (sizes[1:] * layers >= _ENOUGH)) + 1
    found = []
    for at in likely[(experts[starts[likely]] == experts[starts[likely - 1]]).all(axis=(1, 2))].tolist():
        rows = experts[starts[at] : starts[at] + sizes[at]]
        if not (rows == rows[0]).all() and _equal(rows, experts[starts[at] - sizes[at] : starts[at]]):
            found.append(int(step[starts[at]]))
    text = "this pass repeats the one before row by row: another rank's copy, or a run again"
    notes = [on_steps(number, number + 1, text, removes=True) for number in found[:_FEW]]
    more = f"{len(found) - _FEW} further passes repeat the one before row by row"
    return notes + ([more] if len(found) > _FEW else [])


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool((one[0] == other[0]).all()) and np.array_equal(one, other)


def _crowded(columns: Mapping[str, Any]) -> list[str]:
    step, request, phase = (np.asarray(columns[name]) for name in ("step", "request", "phase"))
    if not step.shape == request.shape == phase.shape or step.ndim != 1 or told_apart(step, request, phase):
        return []
    return [
        "requests cannot be told apart: generated tokens of one request share a forward pass, so they are a batch's; "
        "figures of requests are left out"
    ]


def _lost_scores(source: Path, experts: NDArray[Any], weights: Any) -> list[str]:
    """Rows of equal weights and consecutive ids: what a top-k over equal (lost, or not-a-number) scores gives."""
    tokens, layers, top_k = experts.shape
    if top_k < 2:
        return []
    found, first = 0, None
    scored = None if weights is None else np.asarray(weights)
    if scored is not None and (scored.dtype.kind != "f" or scored.shape != experts.shape):
        return []  # the writer says what is wrong with them
    for start in range(0, tokens, _rows(experts)):
        ids = np.sort(experts[start : start + _rows(experts)].astype(np.int64), axis=2)
        odd = (np.diff(ids, axis=2) == 1).all(axis=2) & (ids[:, :, -1] != UNUSED)
        if scored is None:
            odd &= ids[:, :, 0] == 0
        else:
            part = scored[start : start + _rows(experts)]
            odd &= (part == part[:, :, :1]).all(axis=2)
        if first is None and odd.any():
            row, layer = np.argwhere(odd)[0]
            first = (start + int(row), int(layer))
        found += int(odd.sum())
    total = tokens * layers
    if first is None or found < _ENOUGH or found * 100 < total:
        return []
    what = f"{found} of {total} choices (first: row {first[0]}, MoE layer {first[1]}) are consecutive ids "
    if scored is None:
        return [what + "from 0 on: what a gate chooses whose scores were lost"] if found * 2 > total else []
    if found * 2 > total:
        raise ImportFormatError(f"{source}: {what}with equal weights: the gate's scores were lost; record again")
    return [what + "with equal weights: what a gate chooses whose scores were lost"]


def _missing(experts: NDArray[Any], layers: list[int]) -> list[str]:
    absent = np.zeros(experts.shape[1], np.int64)
    for start in range(0, len(experts), _rows(experts)):
        absent += (experts[start : start + _rows(experts)] == UNUSED).all(axis=2).sum(axis=0)
    return [
        f"layer {layers[layer]} has no routing for {absent[layer]} of {len(experts)} tokens"
        for layer in np.flatnonzero(absent)[:4]
    ]


def _rows(experts: NDArray[Any]) -> int:
    return max(1, _CHUNK // int(experts[0].size))
