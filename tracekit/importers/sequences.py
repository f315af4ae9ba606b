"""Requests, each an array of choices, made into one trace: what importers of serving engines have in common."""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.slots import fused_slots, without_slots
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, Manifest, ModelInfo
from tracekit.rows import DECODE, PREFILL, UNUSED

ABSENT = -1
"""The id that engines put where no expert was chosen, or none was recorded."""
_PIECE = 1 << 20  # ids that are looked at together
_BY_CHANCE = 16  # choices of expert 0 in a row that chance does not make


@dataclass(frozen=True, slots=True)
class Sequence:
    """One request.

    `experts` [tokens, layers, k], ABSENT where unused; `prompt` of the tokens belong to the prompt and went through
    one forward pass, each other token through its own. `first` is the position of the first token. `joins` says that
    the prompt went through the same pass as the prompt of the sequence before. Where a log says more, `steps` are the
    passes of the tokens, numbered over all sequences, and `phase` their phases. `name` is where it was read, for
    messages.
    """

    name: str
    experts: NDArray[Any]
    prompt: int = 0
    first: int = 0
    token_id: NDArray[np.integer] | None = None
    weights: NDArray[Any] | None = None
    joins: bool = False
    steps: NDArray[np.int64] | None = None
    phase: NDArray[Any] | None = None


def assemble(
    source: Path,
    format_name: str,
    sequences: Many[Sequence],
    options: ImportOptions,
    *,
    moe_layers: list[int] | None = None,
    model: str | None = None,
    stated: int | None = None,
    notes: Many[str] = (),
) -> Imported:
    """One trace of all `sequences`, each a request: one after the other, unless they say their steps.

    Tokens and layers without any routing are left out, with a note: engines fill what they did not record, and what
    is no MoE layer, with ABSENT or with zeros. `moe_layers` are the model's indices of the layers, by default from 0;
    `stated` is the number of experts per layer that the file itself says.
    """
    _check_shapes(source, sequences)
    experts = _joined(source, sequences, options.drop_slot)
    told = list(notes)
    blank = _blank(experts)  # [tokens, layers]
    layers: NDArray[np.bool_] = np.logical_not(blank.all(axis=0))
    kept: NDArray[np.bool_] = np.logical_not(blank.all(axis=1))
    if not layers.any():
        raise ImportFormatError(f"{source} holds no routing: every id is {ABSENT} or 0; record again")
    numbers = list(range(experts.shape[1])) if moe_layers is None else moe_layers
    if not layers.all():
        dense = [numbers[layer] for layer in np.flatnonzero(~layers)]
        told.append(f"{len(dense)} of {len(numbers)} layers hold no routing and were taken as dense: {_list(dense)}")
    if not kept.all():
        told.append(
            f"{(~kept).sum()} of {len(kept)} tokens hold no routing (cached prefix or padding) and were left out"
        )
    weights = _weights(sequences)
    columns = _columns(sequences)
    rows = np.flatnonzero(kept)
    if (np.diff(columns["step"][rows]) < 0).any():  # the tokens of a batch come together
        rows = rows[np.argsort(columns["step"][rows], kind="stable")]
    if len(rows) < len(kept) or (np.diff(rows) < 0).any():
        columns = {name: column[rows] for name, column in columns.items()}
    # Tokens left out may have been a step's only ones: steps stay without gaps.
    columns["step"] = np.cumsum(np.append(False, np.diff(columns["step"]) != 0), dtype=np.int32)
    experts = _selected(experts, rows, layers)
    if weights is not None:
        columns["weights"] = _selected(without_slots(source, weights, options.drop_slot), rows, layers)
    per_layer, how = _experts_per_layer(source, experts, options.experts, stated)
    return Imported(
        Manifest(
            source=f"import:{format_name}",
            model=ModelInfo(id=options.model or model or source.stem),
            moe_layers=[numbers[layer] for layer in np.flatnonzero(layers)],
            model_layers=numbers[-1] + 1,
            experts_per_layer=[per_layer] * int(layers.sum()),
            top_k=experts.shape[2],
            notes=[*how, *told],
        ),
        columns | {"experts": experts},
    )


def _check_shapes(source: Path, sequences: Many[Sequence]) -> None:
    if not sequences or not sum(len(sequence.experts) for sequence in sequences):
        raise ImportFormatError(f"{source} holds no routed tokens: was the engine told to return routed experts?")
    for sequence in sequences:
        array = sequence.experts
        if array.ndim != 3 or array.dtype.kind not in "iu" or 0 in array.shape[1:]:
            raise ImportFormatError(
                f"{source}: {sequence.name} is {array.dtype} {list(array.shape)}, expected integers [tokens, layers, k]"
            )
        first = sequences[0].experts.shape[1:]
        if array.shape[1:] != first:
            raise ImportFormatError(
                f"{source}: {sequence.name} has {array.shape[1]} layers of {array.shape[2]} slots, "
                f"{sequences[0].name} has {first[0]} of {first[1]}: import each model's file alone"
            )
    layers, top_k = sequences[0].experts.shape[1:]
    if layers > MAX_LAYERS or top_k > MAX_TOP_K:
        raise ImportFormatError(f"{source}: {layers} layers of {top_k} slots, too many for a model")


def _joined(source: Path, sequences: Many[Sequence], drop_slot: tuple[int, ...]) -> NDArray[np.uint16]:
    """The choices of all sequences [tokens, layers, k], UNUSED where absent, without some slots; checked."""
    layers, top_k = sequences[0].experts.shape[1:]
    left = max(0, top_k - len(set(drop_slot)))
    experts = np.empty((sum(len(one.experts) for one in sequences), layers, left), np.uint16)
    at = 0
    for sequence in sequences:
        for first, last in _pieces(sequence.experts):
            part: NDArray[Any] = without_slots(source, sequence.experts[first:last], drop_slot)
            wrong = (part < ABSENT) | (part >= MAX_EXPERTS)
            if wrong.any():
                row, layer, slot = np.argwhere(wrong)[0]
                raise ImportFormatError(
                    f"{source}: {sequence.name}, row {first + row}, layer {layer}: expert id {part[row, layer, slot]} "
                    "is out of range (wrong number type, layers or top-k?)"
                )
            experts[at : at + len(part)] = part.astype(np.uint16)  # ABSENT wraps to UNUSED
            at += len(part)
    return experts


def _selected(array: NDArray[Any], rows: NDArray[np.intp], layers: NDArray[np.bool_]) -> NDArray[Any]:
    """Some rows and layers of [tokens, layers, k], in the order of `rows`; no copy where that is all, as it is."""
    if layers.all() and len(rows) == len(array) and (rows[1:] > rows[:-1]).all():
        return array
    return array[np.ix_(rows, np.flatnonzero(layers))]


def _pieces(array: NDArray[Any]) -> list[tuple[int, int]]:
    """The rows of [tokens, layers, k] in pieces whose temporaries take little."""
    rows = max(1, _PIECE // max(1, array.shape[1] * array.shape[2]))
    return [(first, min(first + rows, len(array))) for first in range(0, len(array), rows)]


def _all_of(experts: NDArray[np.uint16], value: int) -> NDArray[np.bool_]:
    """Whether all slots of a token at a layer hold `value`, [tokens, layers]."""
    found = np.empty(experts.shape[:2], np.bool_)
    for first, last in _pieces(experts):
        found[first:last] = (experts[first:last] == value).all(axis=2)
    return found


def _blank(experts: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Where a token has no routing at a layer, [tokens, layers]: all UNUSED, or all 0 where that is no choice.

    Of several experts, all 0 is no choice. One expert may be expert 0: then a layer of zeros throughout is none, and so
    is a run of tokens with zeros at every layer that is too long for chance.
    """
    blank = _all_of(experts, UNUSED)
    zero = blank | _all_of(experts, 0)
    if experts.shape[2] > 1:
        return zero
    if len(zero) >= _BY_CHANCE:
        blank |= zero.all(axis=0)
    rest = int((~blank.all(axis=0)).sum())
    empty = zero.all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]])))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if (last - first) * rest >= _BY_CHANCE:
            blank[first:last] = True
    return blank


def _columns(sequences: Many[Sequence]) -> dict[str, NDArray[Any]]:
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("step", "request", "position", "phase", "token_id")}
    step = 0
    for number, sequence in enumerate(sequences):
        count = len(sequence.experts)
        prompt = min(sequence.prompt, count)
        if prompt and not (sequence.joins and number):
            step += 1
        steps: NDArray[Any] = np.full(count, step, np.int32)
        steps[prompt:] = step + 1 + np.arange(count - prompt)
        if sequence.steps is not None:
            steps = sequence.steps
        step = int(steps[-1]) if count else step
        parts["step"].append(steps)
        parts["request"].append(np.full(count, number, np.int32))
        wide = np.int32 if sequence.first + count < 2**31 else np.int64
        parts["position"].append(np.arange(sequence.first, sequence.first + count, dtype=wide))
        by_place = np.where(np.arange(count) < prompt, PREFILL, DECODE).astype(np.uint8)
        parts["phase"].append(by_place if sequence.phase is None else sequence.phase)
        ids = sequence.token_id
        known = ids is not None and len(ids) == count
        parts["token_id"].append(ids if ids is not None and known else np.full(count, -1, np.int32))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _weights(sequences: Many[Sequence]) -> NDArray[Any] | None:
    parts = [sequence.weights for sequence in sequences if sequence.weights is not None]
    return np.concatenate(parts) if len(parts) == len(sequences) else None


def _experts_per_layer(
    source: Path, experts: NDArray[Any], told: int | None, stated: int | None
) -> tuple[int, list[str]]:
    largest = int(experts.max(where=experts != UNUSED, initial=0))
    number = told or stated
    if number is None:
        number = max(largest + 1, experts.shape[2])
        return number, [f"experts per layer taken from the largest id: {number}; --experts says it for certain"]
    if largest >= number:
        who = "--experts says" if told else "its header says"
        fused = "".join(
            f"; slot {slot} holds such ids alone (a shared expert?): --drop-slot {slot} leaves it out"
            for slot in fused_slots(experts, number)
        )
        raise ImportFormatError(f"{source} holds expert id {largest}, {who} there are {number}{fused}")
    return number, []


def _list(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8])
    return shown + (", ..." if len(numbers) > 8 else "")
