"""`Layout`: where the tensors of one expert stand in its slab of bytes, as the model has them or quantised."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from engine.plan.weights import WeightFormat
from engine.runtime.storage.expansion import expand
from engine.runtime.storage.quantise import quantised_on
from tracekit.recorder.seam import has_gate, is_concatenated

ALIGNMENT = 64  # of slabs, and of the tensors that kernels read: a cache line, what vectorised kernels like best

SLOT_ALIGNMENT = 512  # of slots on a device: what CUDA's allocators give, and copy engines and wide loads like best


@dataclass(frozen=True, slots=True)
class Field:
    """One stored tensor of an expert and where its bytes stand in the slab."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Layout(Protocol):
    """How the experts of a layer are laid out in their slabs."""

    @property
    def fields(self) -> tuple[Field, ...]: ...

    @property
    def bytes(self) -> int:
        """Bytes of an expert, which is what a load copies."""

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        """The stored tensors within a slab u8 [bytes], or of n slabs [n, bytes] at once, typed."""

    def weights(self, views: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors an expert computes with, by parameter name, from the views of its slab."""

    def pack(self, name: str, stacked: Tensor, slabs: Tensor, device: torch.device | None = None) -> None:
        """Store parameter `name` of all experts, [experts, ...], in their slabs u8 [experts, bytes].

        What there is to compute is computed on `device`, by default where the parameter is.
        """


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """The parameters as they are, each on a boundary of `ALIGNMENT` bytes.

    A slab is as many bytes as its parameters wherever those are multiples of `ALIGNMENT`, as in all models of note.
    """

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, experts: nn.Module) -> Self:
        """The layout of one expert of `experts`: every parameter whose first dimension counts experts."""
        fields: list[Field] = []
        offset = 0
        for name, parameter in expert_parameters(experts).items():
            field = Field(name, parameter.dtype, tuple(parameter.shape[1:]), offset)
            fields.append(field)
            offset = aligned(offset + field.bytes)
        return cls(tuple(fields))

    @property
    def bytes(self) -> int:
        return self.fields[-1].offset + self.fields[-1].bytes

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        return field_views(self.fields, slab)

    def weights(self, views: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return views

    def pack(self, name: str, stacked: Tensor, slabs: Tensor, device: torch.device | None = None) -> None:
        self.views(slabs)[name].copy_(stacked)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows `first` to `first + rows` of a parameter, seen as [outputs, inputs]: what is quantised on its own."""

    parameter: str
    first: int
    rows: int
    cols: int

    def key(self, tensor: str) -> str:
        """The name of one of its stored tensors."""
        return f"{self.parameter}.{self.first}.{tensor}"


@dataclass(frozen=True, slots=True)
class QuantisedLayout:
    """Matrices as HQQ stores them, biases in fp16; without gaps, so that a slab is what `engine.plan.weights` counts.

    Fields stand in the order of their items' sizes, which puts each on a boundary of its own type.
    """

    fields: tuple[Field, ...]
    matrices: tuple[Matrix, ...]
    format: WeightFormat
    transposed: bool
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype
    """What experts compute in."""

    @classmethod
    def of(cls, experts: nn.Module, weight_format: WeightFormat) -> Self:
        """The layout of one expert of a module. PlanError for shapes that the format cannot store."""
        matrices: list[Matrix] = []
        stored: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        parameters = expert_parameters(experts)
        for name, parameter in parameters.items():
            if parameter.dim() != 3:
                stored.append((name, torch.float16, tuple(parameter.shape[1:])))
                continue
            rows, cols = parameter.shape[1:][::-1] if experts.is_transposed else parameter.shape[1:]
            # Checkpoints hold gate and up apart, and transformers puts one below the other.
            parts = 2 if has_gate(experts) and is_concatenated(experts) and name == "gate_up_proj" else 1
            for part in range(parts):
                matrix = Matrix(name, part * rows // parts, rows // parts, cols)
                matrices.append(matrix)
                for tensor in weight_format.tensors(matrix.rows, matrix.cols):
                    stored.append((matrix.key(tensor.name), getattr(torch, tensor.dtype), tensor.shape))
        fields: list[Field] = []
        offset = 0
        for name, dtype, shape in sorted(stored, key=lambda entry: -entry[1].itemsize):
            fields.append(Field(name, dtype, shape, offset))
            offset += fields[-1].bytes
        shapes = tuple((name, tuple(parameter.shape[1:])) for name, parameter in parameters.items())
        dtype = next(iter(parameters.values())).dtype
        return cls(tuple(fields), tuple(matrices), weight_format, bool(experts.is_transposed), shapes, dtype)

    @property
    def bytes(self) -> int:
        return self.fields[-1].offset + self.fields[-1].bytes

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        return field_views(self.fields, slab)

    def weights(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = next(iter(views.values())).device
        found: dict[str, Tensor] = {}
        for name, shape in self.shapes:
            if name in views:
                found[name] = views[name].to(self.dtype)
            else:
                rows_cols = shape[::-1] if self.transposed else shape
                found[name] = torch.empty(rows_cols, dtype=self.dtype, device=device)
        for matrix in self.matrices:
            tensors = {tensor: views[matrix.key(tensor)] for tensor in self._names(matrix)}
            target = found[matrix.parameter][matrix.first : matrix.first + matrix.rows]
            expand(tensors, self.format, matrix.rows, matrix.cols, target)
        if self.transposed:
            found = {name: tensor.t() if tensor.dim() == 2 else tensor for name, tensor in found.items()}
        return found

    def pack(self, name: str, stacked: Tensor, slabs: Tensor, device: torch.device | None = None) -> None:
        matrices = [matrix for matrix in self.matrices if matrix.parameter == name]
        if not matrices:
            self.views(slabs)[name].copy_(stacked)
            return
        for expert, slab in enumerate(slabs):
            views = self.views(slab)
            whole = stacked[expert].t() if self.transposed else stacked[expert]
            for matrix in matrices:
                part = whole[matrix.first : matrix.first + matrix.rows]
                for tensor, value in quantised_on(device or part.device, part, self.format).items():
                    views[matrix.key(tensor)].copy_(value)

    def _names(self, matrix: Matrix) -> list[str]:
        return [tensor.name for tensor in self.format.tensors(matrix.rows, matrix.cols)]


def layout_of(experts: nn.Module, weights: str | None) -> Layout:
    """How one expert of `experts` is stored in a weight format; None stores it as it is."""
    parsed = None if weights is None else WeightFormat.parse(weights).served()
    return QuantisedLayout.of(experts, parsed) if parsed is not None and parsed.quantised else PlainLayout.of(experts)


def expert_parameters(experts: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an experts module that hold one entry per expert, [experts, ...]."""
    parameters = experts.named_parameters(recurse=False)
    return {name: p for name, p in parameters if p.dim() > 0 and p.shape[0] == experts.num_experts}


def field_views(fields: tuple[Field, ...], slab: Tensor) -> dict[str, Tensor]:
    """The typed tensors of a slab u8 [..., bytes]."""
    views = {}
    for field in fields:
        flat = slab[..., field.offset : field.offset + field.bytes].view(field.dtype)  # [..., values]
        views[field.name] = flat.view((*slab.shape[:-1], *field.shape))
    return views


def aligned(size: int, boundary: int = ALIGNMENT) -> int:
    """`size`, rounded up to a multiple of `boundary`: the distance of one slab from the next."""
    return -(-size // boundary) * boundary
