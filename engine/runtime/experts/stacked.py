"""`Stacked`: experts that lie one after the other in memory, as kernels are told of them.

The slots of a pool, laid out as a plan stores experts, and the parameters of a model that is not offloaded are the same
to a kernel: bytes, a stride from one expert to the next, and where in an expert's bytes its matrices stand.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.runtime.experts.activation import Activation, activation_of
from engine.runtime.storage.slab_layout import Layout, QuantisedLayout, expert_parameters

NO_BIAS = -1


class Stored(NamedTuple):
    """Where one matrix [outputs, inputs] stands in the bytes of an expert. Offsets in bytes, strides in items."""

    bits: int  # of a code; 0: numbers as they are
    at: int  # of codes or numbers
    row: int  # of numbers: stride from an output to the next, and from an input to the next
    col: int
    cols: int  # inputs
    group: int = 1
    words: int = 1  # groups of words, one after the other (engine.plan.weights)
    meta: int = 0  # columns of quantised scales and zeros; 0: they are fp16
    scale: int = 0
    scale_scale: int = 0
    scale_zero: int = 0
    zero: int = 0
    zero_scale: int = 0
    zero_zero: int = 0


class Bytes(NamedTuple):
    """Stacked experts' bytes: a tensor u8 that begins with the first expert's, and the stride to the next."""

    all: Tensor
    stride: int


@dataclass(frozen=True, slots=True)
class Product:
    """One of an expert's two products. `matrices`: gate and up, or the only one twice; `bias`: its offset or NO_BIAS.

    `spread`: in how many runs of rows a program takes its outputs, so that codes of one word are read together.
    """

    matrices: tuple[Stored, Stored]
    bias: int
    bias_dtype: torch.dtype
    outputs: int
    spread: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What kernels know of the experts of a layer when they are compiled."""

    activation: Activation
    first: Product
    second: Product
    dtype: torch.dtype


def shape_of(experts: nn.Module, layout: Layout, *, apart: bool = False) -> Shape:
    """The shape of the experts of a module as `layout` stores them. PlanError where kernels do not know them.

    `apart`: each tensor is a stack of its own, not a field of an expert's slab.
    """
    activation = activation_of(experts)
    names = first_and_second(activation)
    fields = {field.name: field for field in layout.fields}
    products: list[Product] = []
    for name in names:
        rows, cols = _outputs_inputs(experts, name)
        double = activation.gated and name == names[0]
        starts = (0, rows // 2) if double and not activation.interleaved else (0, 0)
        if isinstance(layout, QuantisedLayout):
            gate, up = (_quantised(layout, name, start, cols) for start in starts)
        else:
            base, item = (0 if apart else fields[name].offset), fields[name].dtype.itemsize
            row, col = (1, rows) if experts.is_transposed else (cols, 1)
            gate, up = (Stored(0, base + start * row * item, row, col, cols) for start in starts)
        bias = fields.get(f"{name}_bias")
        outputs = rows // 2 if double else rows
        products.append(
            Product(
                matrices=(gate, up),
                bias=NO_BIAS if bias is None else 0 if apart else bias.offset,
                bias_dtype=torch.float16 if bias is None else bias.dtype,
                outputs=outputs,
                spread=_spread(gate.bits, outputs),
            )
        )
    dtype = layout.dtype if isinstance(layout, QuantisedLayout) else fields[names[1]].dtype
    return Shape(activation, products[0], products[1], dtype)


def first_and_second(activation: Activation) -> tuple[str, str]:
    """The names of the parameters that the two products read."""
    return ("gate_up_proj" if activation.gated else "up_proj"), "down_proj"


def loose(experts: nn.Module, name: str) -> Bytes:
    """A parameter of a module that is not offloaded, as a stack of its own; any, if it has none of that name."""
    parameters = expert_parameters(experts)
    found = parameters.get(name, next(iter(parameters.values()))).detach()
    return Bytes(found.view(torch.uint8).view(-1), found.stride(0) * found.itemsize)


def _outputs_inputs(experts: nn.Module, name: str) -> tuple[int, int]:
    one, other = expert_parameters(experts)[name].shape[1:]
    return (other, one) if experts.is_transposed else (one, other)


def _quantised(layout: QuantisedLayout, name: str, start: int, cols: int) -> Stored:
    """The matrix of a parameter that begins with row `start`."""
    matrix = next(one for one in layout.matrices if (one.parameter, one.first) == (name, start))
    fields = {field.name: field for field in layout.fields}
    inner = {"meta": 0}
    for tensor in layout.format.tensors(matrix.rows, cols):
        field = fields[matrix.key(tensor.name)]
        if tensor.name == "codes":
            at, words = field.offset, field.shape[0]
        else:
            inner[tensor.name.replace(".", "_")] = field.offset
            if layout.format.meta_group:
                inner["meta"] = field.shape[1]
    return Stored(layout.format.bits, at, cols, 1, cols, layout.format.group, words, **inner)


def _spread(bits: int, outputs: int) -> int:
    """Words hold codes of rows that stand so many parts of a matrix apart: of those a program takes some each."""
    parts = 8 // bits if bits in (2, 4) else 1
    return parts if outputs % parts == 0 else 1
