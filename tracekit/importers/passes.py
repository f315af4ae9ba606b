"""Which lines of a log went through the model together: forward passes, by whatever a log says of them.

A log says it by numbering its steps; by one line for all tokens of a pass; by token numbers that start again; or by its
order, layer after layer, with all tokens of a pass at each. What says nothing leaves each token a pass of its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.rows import DECODE, PREFILL

Column = NDArray[np.int64]

_CONSTANT = 16  # tokens of one choice: a warm-up pass, which says nothing about the next one
_CHUNK = 64  # tokens: prompts are cut into no smaller chunks, and batches are seldom larger


@dataclass(frozen=True, slots=True)
class Passes:
    """One value per row of a log: `number` of its pass in order of appearance, and `place` of its token in its request.

    `how` is what told: "steps", "lists", "restarts", "order", or "nothing": then each generated token is a pass, and
    each stretch of a prompt, in the order of the log. None where its lines are in no order.
    """

    number: Column | None
    place: Column
    how: str


def find_passes(
    request: Column, layer: Column, token: Column, line: Column, step: Column | None, phase: NDArray[np.int8]
) -> Passes:
    """The passes of a log's rows, each a token at a layer, in the order of the log.

    `token` is its number, -1 where the log gives none; `line` where it was read, several rows of a line being tokens
    of one pass; `step` the pass's own number, None where there is none; `phase` is -1 where unknown.
    """
    listed = bool((line[1:] == line[:-1]).any())
    numbered = bool((token >= 0).all())
    own = np.zeros_like(line) if step is None else _own_steps(request, layer, step)
    stretch = _dense(own, request, layer)
    ordinal = _lines(stretch, line) if listed else _returns(stretch, token) if numbered else np.zeros_like(line)
    how = "lists" if listed else "restarts" if ordinal.any() else "nothing"
    number: Column | None
    if step is not None:
        number, how = _by_appearance(_dense(own, ordinal)), "steps"
    else:
        number = _by_appearance(_dense(request, ordinal))
        order = _by_order(request, layer, phase)
        if order is not None and (not ordinal.any() or _nested(number, order, request)):
            number, how = order, "order" if how == "nothing" else how
    stretch = _dense(request, layer)
    repeated = how != "nothing" and bool((np.bincount(_dense(stretch, token)) > 1).any())
    place = token if numbered and not repeated else _places(stretch, number, token)
    return Passes(_singly(request, stretch, place, phase) if how == "nothing" else number, place, how)


def phases_of(number: Column, experts: NDArray[Any], *, alone: bool) -> NDArray[np.uint8]:
    """The phase of one request's tokens, in order, from the passes they went through; experts [tokens, layers, k].

    One token in a pass was generated. Several are of the prompt where the tokens are one request's `alone`. Where they
    may be a batch's, a pass is of prompts if it has more tokens than the one before (generating never takes more),
    as many and no fewer than a chunk has, or is the rest of a chunked prompt before single tokens; else it was
    generated. A pass of one choice throughout is a warm-up, after which all begins again.
    """
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    sizes = np.diff(np.append(starts, len(number))).tolist()
    phase = np.full(len(number), DECODE, np.uint8)
    before, prompt = 1, False
    for start, size, after in zip(starts.tolist(), sizes, [*sizes[1:], 0], strict=True):
        rows = experts[start : start + size]
        constant = size >= _CONSTANT and bool((rows == rows[0]).all())
        goes_on = prompt and ((size == before and size >= _CHUNK) or (size > 1 and after == 1))
        prompt = constant or size > before or goes_on or (alone and size > 1)
        if prompt:
            phase[start : start + size] = PREFILL
        before, prompt = (1, False) if constant else (size, prompt)
    return phase


def _dense(first: Column, *others: Column) -> Column:
    """Rows numbered by their values in all columns, from 0."""
    number = np.unique(first, return_inverse=True)[1].reshape(-1)
    for column in others:
        value = np.unique(column, return_inverse=True)[1].reshape(-1)
        number = np.unique(number * (int(value.max(initial=0)) + 1) + value, return_inverse=True)[1].reshape(-1)
    return number


def _by_appearance(group: Column) -> Column:
    """Groups numbered from 0 in the order in which their first rows come."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _own_steps(request: Column, layer: Column, step: Column) -> Column:
    """Which rows name the same step: of all requests, unless its numbers go back, as where each counts its own."""
    if (step[1:] >= step[:-1]).all():
        return _dense(step)
    stretch = _dense(request, layer)
    order = np.argsort(stretch, kind="stable")
    back = np.append(False, np.diff(step[order]) < 0)
    return _dense(request, _counted(order, stretch[order], back), step)


def _lines(stretch: Column, line: Column) -> Column:
    """How many lines of its stretch came before a row's."""
    order = np.argsort(stretch, kind="stable")
    return _counted(order, stretch[order], np.append(True, np.diff(line[order]) != 0))


def _returns(stretch: Column, token: Column) -> Column:
    """How often its stretch had come back to its first number before a row."""
    order = np.argsort(stretch, kind="stable")
    ordered, value = stretch[order], token[order]
    return _counted(order, ordered, value == _first(ordered, value))


def _counted(order: NDArray[np.intp], ordered: Column, fresh: NDArray[np.bool_]) -> Column:
    count = np.cumsum(fresh | np.append(True, ordered[1:] != ordered[:-1]))
    found = np.empty(len(order), np.int64)
    found[order] = count - _first(ordered, count)
    return found


def _first(ordered: Column, value: Column) -> Column:
    """For each row the value of its group's first row; groups one after the other."""
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return np.repeat(value[starts], np.diff(np.append(starts, len(value))))


def _singly(request: Column, stretch: Column, place: Column, phase: NDArray[np.int8]) -> Column | None:
    """Passes of single tokens, and of prompts whole; None where tokens do not come in order."""
    order = np.argsort(stretch, kind="stable")
    ordered, at, prompt = stretch[order], place[order], phase[order] == PREFILL
    same = ordered[1:] == ordered[:-1]
    if (same & (at[1:] < at[:-1])).any():
        return None
    stretches = _counted(order, ordered, prompt & np.append(True, ~prompt[:-1]))
    return _by_appearance(_dense(request, np.where(phase == PREFILL, -1 - stretches, place)))


def _by_order(request: Column, layer: Column, phase: NDArray[np.int8]) -> Column | None:
    """Passes where the log goes through it layer by layer, several tokens at each; None where it does not."""
    head = np.flatnonzero(np.append(True, layer[1:] != layer[:-1]))
    layers = len(np.unique(layer))
    if layers < 2 or len(head) == len(layer) or len(head) % layers:
        return None
    runs = layer[head].reshape(-1, layers)
    sizes = np.diff(np.append(head, len(layer))).reshape(-1, layers)
    if (np.sort(runs, axis=1) != np.unique(layer)).any() or (sizes != sizes[:, :1]).any():
        return None
    number = np.repeat(np.arange(len(runs)), sizes.sum(axis=1))
    generated = phase == DECODE  # one of a request in a pass, or the order is not that of passes
    alone = _dense(number, request, layer)
    return None if (np.bincount(alone[generated]) > 1).any() else number


def _nested(own: Column, order: Column, request: Column) -> bool:
    """Whether a request's own passes are each within one pass of the order, and no two of a request within one."""
    pairs = len(np.unique(_dense(own, order)))
    return pairs == len(np.unique(own)) == len(np.unique(_dense(request, order)))


def _places(stretch: Column, number: Column, token: Column) -> Column:
    """Places counted on from pass to pass: in order of the rows, or of their numbers, which start again."""
    order = np.lexsort((number, stretch))
    ordered, value = stretch[order], token[order]
    place = np.empty(len(stretch), np.int64)
    if (token < 0).any():
        at = np.arange(len(order))
        place[order] = at - _first(ordered, at)
        return place
    head = np.append(True, ordered[1:] != ordered[:-1])
    fresh = np.flatnonzero(head | np.append(True, np.diff(number[order]) != 0))
    low, high = np.minimum.reduceat(value, fresh), np.maximum.reduceat(value, fresh)
    # The lowest number of a pass comes where the highest of the pass before ended; the first pass keeps its own.
    size = np.where(head[fresh], high + 1, high - low + 1)
    base = np.cumsum(size) - size
    base -= _first(ordered[fresh], base)
    place[order] = value + np.repeat(np.where(head[fresh], 0, base - low), np.diff(np.append(fresh, len(order))))
    return place
