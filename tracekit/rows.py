"""The rows of a trace and the rules they keep, checked when they are written and again when they are read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError

PREFILL = 0
DECODE = 1
UNUSED = 65535  # the expert id of a slot that no expert was chosen for

_Scalar = TypeVar("_Scalar", bound=np.generic)
COLUMNS = ("step", "request", "position", "phase", "token_id")  # of `Columns`, in the order of a shard
_LIMITS: dict[str, tuple[int, int | None]] = {
    "request": (0, None),
    "position": (0, None),
    "phase": (0, 1),
    "token_id": (-1, None),
}
_CHUNK = 1 << 22  # lookups looked at at once: keeps temporaries in cache


@dataclass(frozen=True, slots=True)
class Columns:
    """What is one number for each of consecutive tokens, [tokens] each."""

    step: NDArray[np.int32]
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    phase: NDArray[np.uint8]
    token_id: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: slice | NDArray[np.int64]) -> "Columns":
        """These rows, read-only."""
        return Columns(*(fixed(getattr(self, name)[rows]) for name in COLUMNS))

    @staticmethod
    def join(parts: "Sequence[Columns]") -> "Columns":
        """`parts` end to end as read-only arrays; empty ones when there are no parts."""
        empty = np.zeros(0, np.int32)
        none = Columns(empty, empty, empty, np.zeros(0, np.uint8), empty)
        if len(parts) == 1:
            return Columns(*(fixed(getattr(parts[0], name)) for name in COLUMNS))
        return Columns(*(fixed(np.concatenate([getattr(part, name) for part in parts or [none]])) for name in COLUMNS))


@dataclass(frozen=True, slots=True)
class Rows(Columns):
    """Consecutive tokens; experts [tokens, layers, k]."""

    experts: NDArray[np.uint16]


def fixed(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The array, read-only."""
    array.flags.writeable = False
    return array


def first_appearances(request: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Requests numbered from 0 in order of appearance: the number of each row's, [tokens], and how many there are."""
    if not len(request):
        return np.zeros(0, np.int32), 0
    # Rows of a request mostly follow each other: only runs are sorted.
    starts = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
    values, first, inverse = np.unique(request[starts], return_index=True, return_inverse=True)
    rank = np.empty(len(values), np.int32)
    rank[np.argsort(first)] = np.arange(len(values), dtype=np.int32)
    return np.repeat(rank[inverse.reshape(-1)], np.diff(np.append(starts, len(request)))), len(values)


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Let what a check of values read from `path` raises say where they were read."""
    try:
        yield
    except TraceError as error:
        raise TraceError(f"{path} is damaged: {error}") from None


def check_columns(columns: Columns) -> None:
    """Raise TraceError, naming the first offending row, unless every value is one that a trace may hold."""
    step = columns.step
    if len(step) == 0:
        return
    backwards = np.flatnonzero(step[1:] < step[:-1])
    if step[0] < 0 or backwards.size:
        row = int(backwards[0]) + 1 if backwards.size else 0
        raise TraceError(f"row {row}: step {step[row]} is negative or comes after a later step")
    for name, (low, high) in _LIMITS.items():
        column = getattr(columns, name)
        wrong = column < low if high is None else (column < low) | (column > high)
        if wrong.any():
            row = int(wrong.argmax())
            raise TraceError(f"row {row}: {name} {column[row]} is out of range")


def check_distinct(experts: NDArray[np.uint16], first: int = 0) -> None:
    """Raise TraceError when a token chose the same expert twice at one layer; experts as for `check_ids`."""
    if experts.shape[2] < 2:
        return
    for start, part in _chunks(experts):
        ordered = np.sort(part, axis=2)
        twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != UNUSED)
        if twice.any():
            row, layer, slot = np.argwhere(twice)[0]
            expert = ordered[row, layer, slot]
            raise TraceError(f"row {first + start + row}, MoE layer {layer}: expert {expert} is listed twice")


def check_weights(weights: NDArray[np.float16], experts: NDArray[np.uint16], first: int = 0) -> None:
    """Raise TraceError when the weight of a used slot is not a finite number; both as for `check_ids`."""
    for start, part in _chunks(weights):
        wrong = ~np.isfinite(part)
        if wrong.any():
            wrong &= experts[start : start + len(part)] != UNUSED
        if wrong.any():
            row, layer, slot = np.argwhere(wrong)[0]
            weight = part[row, layer, slot]
            raise TraceError(f"row {first + start + row}, MoE layer {layer}: weight {weight} is not finite")


def check_ids(experts: NDArray[np.uint16], experts_per_layer: list[int], first: int = 0) -> None:
    """Raise TraceError when an id is not one of its layer's experts; experts [tokens, layers, k] row `first` first."""
    top_k = experts.shape[2]
    # In u16, UNUSED + 1 wraps to 0, so one comparison accepts both valid ids and unused slots.
    limits = np.repeat(np.asarray(experts_per_layer, dtype=np.uint16), top_k)
    for start, part in _chunks(experts):
        wrong = part.reshape(len(part), -1) + np.uint16(1) > limits
        if wrong.any():
            row, slot = divmod(int(wrong.argmax()), wrong.shape[1])
            layer = slot // top_k
            raise TraceError(
                f"row {first + start + row}, MoE layer {layer}: expert {part[row, layer, slot % top_k]} "
                f"of {experts_per_layer[layer]}"
            )


def _chunks(array: NDArray[_Scalar]) -> list[tuple[int, NDArray[_Scalar]]]:
    rows = max(1, _CHUNK // max(1, array.shape[1] * array.shape[2]))
    return [(start, array[start : start + rows]) for start in range(0, len(array), rows)]
