"""Exact arithmetic: small networks over whole numbers, so that every executor computes the same bits.

Numbers are whole, held in float64, in units of 1 / UNIT. As long as no sum exceeds 2^53 float64 adds and multiplies
them exactly, in whatever order: one row or a million, numpy or torch, CPU or CUDA, with or without fused multiply-
adds. After each product the result is cut back to whole units and to +-LIMIT; `Program.check` refuses weights that
could reach 2^53.

Everything here is written for arrays of numpy and of torch alike, and imports only the former.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from tracekit.errors import PolicyError

UNIT = 1 << 10
"""Of inputs, activations and scores: 1.0 is 1024."""
FINE = 1 << 12
"""Of weights: 1.0 is 4096."""
LIMIT = 1 << 20
"""The largest activation, in units."""
EXACT = 1 << 53
WIDEST, MOST_OPERATIONS = 1 << 18, 1 << 12
"""Columns of a value and operations of a program: far above any predictor, far below what exhausts a machine."""
Array = Any
"""A numpy array or a torch tensor."""


Kind = Literal["linear", "embedding", "relu", "clamp", "add", "subtract", "cat", "slice"]


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operation on named values: `output` = `kind` of `inputs`, with `tensors` or `numbers`.

    linear: x [rows, n] -> x W' + b, tensors W [layers, m, n] and b [layers, m]. embedding: token [rows] -> row of a
    table [layers, tokens, m]; tensors index [largest token id + 2] and table. relu, clamp (numbers low, high, in
    units), add, subtract: element by element. cat: side by side. slice (numbers first, last): columns.
    """

    kind: Kind
    inputs: list[str]
    output: str
    tensors: list[str] = []
    numbers: list[int] = []


class Program(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operations in order, from "x" [rows, features], "state" [rows, state] and "token" [rows] to `outputs`.

    The first output is the scores [rows, experts], the second, if there is one, the state at the next layer.
    """

    operations: list[Operation]
    outputs: list[str]
    state: int = 0

    def check(self, tensors: Mapping[str, np.ndarray], layers: int, features: int, experts: int) -> None:
        """Raise PolicyError unless the program runs on these tensors, for every layer, and stays exact."""
        if not 0 <= self.state <= WIDEST or len(self.operations) > MOST_OPERATIONS:
            raise PolicyError(f"a state of {self.state} columns and {len(self.operations)} operations make no sense")
        widths = {"x": features, "state": self.state, "token": -1}
        for number, operation in enumerate(self.operations):
            try:
                widths[operation.output] = wide = _width(operation, widths, tensors, layers)
                if wide > WIDEST:
                    raise ValueError(f"{wide} columns are more than {WIDEST}")
            except (KeyError, IndexError, ValueError) as error:
                raise PolicyError(f"operation {number} ({operation.kind}) of the program: {error}") from None
        wanted = [experts, self.state] if self.state else [experts]
        found = [widths.get(name) for name in self.outputs]
        if found != wanted:
            raise PolicyError(f"the program gives outputs of widths {found}, not {wanted}")

    def run(self, tensors: Mapping[str, Array], layer: int, values: dict[str, Array]) -> list[Array]:
        """The outputs for source layer `layer`. Tensors whose first extent is 1 serve all layers."""
        for operation in self.operations:
            inputs = [values[name] for name in operation.inputs]
            held = [tensors[name] for name in operation.tensors]
            values[operation.output] = _apply(operation, inputs, held, layer)
        return [values[name] for name in self.outputs]


def _apply(operation: Operation, inputs: Sequence[Array], held: Sequence[Array], layer: int) -> Array:
    kind, x = operation.kind, inputs[0]
    if kind == "linear":
        weight, bias = held[0][min(layer, len(held[0]) - 1)], held[1][min(layer, len(held[1]) - 1)]
        return bounded(whole((x @ weight.T + bias) * (1 / FINE)), -LIMIT, LIMIT)
    if kind == "embedding":
        index, table = held
        return table[min(layer, len(table) - 1)][index[bounded(x + 1, 0, len(index) - 1)]]
    if kind == "relu":
        return bounded(x, 0, LIMIT)
    if kind == "clamp":
        return bounded(x, *operation.numbers)
    if kind == "cat":
        wide = sum(part.shape[1] for part in inputs)
        joined = empty_like(x, (len(x), wide))
        place = 0
        for part in inputs:
            joined[:, place : place + part.shape[1]] = part
            place += part.shape[1]
        return joined
    if kind == "slice":
        return x[:, operation.numbers[0] : operation.numbers[1]]
    both = x + inputs[1] if kind == "add" else x - inputs[1]
    return bounded(both, -LIMIT, LIMIT)


def whole(values: Array) -> Array:
    """Rounded down to whole numbers."""
    return np.floor(values) if isinstance(values, np.ndarray) else values.floor()


def bounded(values: Array, low: float, high: float) -> Array:
    """Cut off at both ends; NaN is taken for the lower."""
    if isinstance(values, np.ndarray):  # the same as clip, without its ten microseconds
        return np.minimum(np.fmax(values, low), high)
    return values.nan_to_num(nan=low).clamp(low, high)


def empty_like(array: Array, shape: tuple[int, ...]) -> Array:
    """An array of float64 beside `array`: of the same library, on the same device."""
    return np.empty(shape) if isinstance(array, np.ndarray) else array.new_empty(shape, dtype=_float64(array))


def _float64(array: Array) -> Any:
    return array.double().dtype


def _width(operation: Operation, widths: Mapping[str, int], tensors: Mapping[str, np.ndarray], layers: int) -> int:
    """Columns of what the operation gives; ValueError where it cannot be, or might not be exact."""
    kind = operation.kind
    inputs = [widths[name] for name in operation.inputs]
    held = [tensors[name] for name in operation.tensors]
    if not inputs or (kind != "embedding" and min(inputs) < 0) or (kind == "embedding" and inputs[0] >= 0):
        raise ValueError("it has no input of the right kind")
    if kind == "linear":
        weight, bias = held
        if weight.ndim != 3 or weight.shape[2] != inputs[0] or bias.shape != weight.shape[:2]:
            raise ValueError(f"weights {weight.shape} and biases {bias.shape} do not fit {inputs[0]} columns")
        _check_layers(weight, layers)
        reach = [(np.abs(w).sum(axis=1) * LIMIT + np.abs(b)).max(initial=0) for w, b in zip(weight, bias, strict=True)]
        if max(reach, default=0) >= EXACT:
            raise ValueError("its weights are so large that sums would not be exact; fit with more weight decay")
        return int(weight.shape[1])
    if kind == "embedding":
        index, table = held
        if index.ndim != 1 or table.ndim != 3 or not len(index) or not 0 <= index.min() <= index.max() < table.shape[1]:
            raise ValueError(f"index {index.shape} and table {table.shape} do not fit")
        _check_layers(table, layers)
        if max(table.max(initial=0), -table.min(initial=0)) > LIMIT:
            raise ValueError(f"its table holds numbers beyond {LIMIT}")
        return int(table.shape[2])
    if kind == "slice":
        first, last = operation.numbers
        if not 0 <= first < last <= inputs[0]:
            raise ValueError(f"columns {first} to {last} of {inputs[0]}")
        return last - first
    if kind == "clamp":
        low, high = operation.numbers
        if not -LIMIT <= low <= high <= LIMIT:
            raise ValueError(f"bounds {low} and {high}")
    if kind in ("add", "subtract") and (len(inputs) != 2 or inputs[0] != inputs[1]):
        raise ValueError(f"inputs of {inputs} columns")
    return sum(inputs) if kind == "cat" else inputs[0]


def _check_layers(tensor: np.ndarray, layers: int) -> None:
    if len(tensor) not in (1, layers):
        raise ValueError(f"a tensor for {len(tensor)} layers, not for 1 or {layers}")
