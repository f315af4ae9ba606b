"""`ExpertStore`: every expert of a model in host memory, each a slab of bytes, so that a load is one copy."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from engine.weights import FORMATS, WeightFormat
from tracekit.errors import HardwareError, ModelError, PlanError
from tracekit.recorder.seam import MoeLayer

ALIGNMENT = 64  # of slabs and of tensors within them: a cache line, and what vectorised kernels like best
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of an expert and where its bytes stand in the slab."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class SlabLayout:
    """What a slab holds: the tensors of one expert of a layer, in the order the module lists them."""

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, experts: nn.Module) -> Self:
        """The layout of one expert of `experts`: every parameter whose first dimension counts experts."""
        fields: list[Field] = []
        offset = 0
        for name, parameter in expert_parameters(experts).items():
            field = Field(name, parameter.dtype, tuple(parameter.shape[1:]), offset)
            fields.append(field)
            offset += _aligned(field.bytes)
        return cls(tuple(fields))

    @property
    def bytes(self) -> int:
        """Bytes of a slab, alignment included."""
        return _aligned(self.fields[-1].offset + self.fields[-1].bytes)

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        """The typed tensors of an expert within its slab, or, given slabs [n, bytes], of n at once."""
        views = {}
        for field in self.fields:
            flat = slab[..., field.offset : field.offset + field.bytes].view(field.dtype)  # [..., values]
            views[field.name] = flat.view((*slab.shape[:-1], *field.shape))
        return views


class ExpertStore:
    """The experts of all MoE layers in one host buffer; `key` is layer * experts + expert, as in the cache.

    Building it *moves* the experts out of the model: a layer is copied into the buffer and its parameters are
    replaced by ones without storage before the next layer's turn, so there are never two copies. Raises
    PlanError for a weight format that the engine cannot serve, ModelError for a model without weights,
    HardwareError when the host's memory is too small.
    """

    def __init__(self, layers: Sequence[MoeLayer], weights: str | None = None) -> None:
        for layer in layers:
            check_storable(layer, weights)
        self.experts = max(layer.num_experts for layer in layers)
        self.layouts = [SlabLayout.of(layer.experts) for layer in layers]
        sizes = [layer.num_experts * layout.bytes for layer, layout in zip(layers, self.layouts, strict=True)]
        self._start = [sum(sizes[:index]) for index in range(len(sizes))]
        self.bytes = sum(sizes)
        try:
            self._buffer = torch.empty(self.bytes, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise HardwareError(f"the host cannot hold {self.bytes} bytes of experts: {error}") from error
        self._unpin: Callable[[], object] | None = None
        for layer, layout, start, size in zip(layers, self.layouts, self._start, sizes, strict=True):
            slabs = self._buffer[start : start + size].view(layer.num_experts, layout.bytes)
            _move(layer.experts, layout, slabs)

    @property
    def slab_bytes(self) -> int:
        """Bytes of the largest slab: what a slot must hold."""
        return max(layout.bytes for layout in self.layouts)

    def layout(self, key: int) -> SlabLayout:
        """How the slab of an expert is laid out."""
        return self.layouts[key // self.experts]

    def slab(self, key: int) -> Tensor:
        """The bytes of an expert, u8 [bytes]."""
        layer, expert = divmod(key, self.experts)
        size = self.layouts[layer].bytes
        start = self._start[layer] + expert * size
        return self._buffer[start : start + size]

    def views(self, key: int) -> dict[str, Tensor]:
        """The tensors of an expert by parameter name, in host memory."""
        return self.layout(key).views(self.slab(key))

    def pin(self) -> None:
        """Lock the buffer in memory, so that CUDA copies without the host. HardwareError if that fails."""
        # In place: torch's own pinned memory would be a second buffer, rounded up to a power of two.
        cuda, address = torch.cuda.cudart(), self._buffer.data_ptr()  # type: ignore[no-untyped-call]
        result = int(cuda.cudaHostRegister(address, self.bytes, 0))
        if result != 0:
            raise HardwareError(
                f"{self.bytes} bytes of host memory cannot be pinned (CUDA error {result}): "
                "free memory or raise `ulimit -l`"
            )
        unpin = weakref.finalize(self._buffer, cuda.cudaHostUnregister, address)
        unpin.atexit = False
        self._unpin = unpin

    def close(self) -> None:
        """Unlock the buffer. Its memory is free when the last view is gone."""
        if self._unpin is not None:
            self._unpin()


def expert_parameters(experts: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an experts module that hold one entry per expert, [experts, ...]."""
    parameters = experts.named_parameters(recurse=False)
    return {name: p for name, p in parameters if p.dim() > 0 and p.shape[0] == experts.num_experts}


def _move(experts: nn.Module, layout: SlabLayout, slabs: Tensor) -> None:
    """Copy the experts of one layer into slabs [experts, bytes]; leave parameters without storage behind."""
    parameters = expert_parameters(experts)
    for name, target in layout.views(slabs).items():  # [experts, ...]
        parameter = parameters.pop(name)
        target.copy_(parameter.detach())
        setattr(experts, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))


def check_storable(layer: MoeLayer, weights: str | None) -> None:
    """Raise PlanError for experts in a format that the engine cannot serve, ModelError where there are none."""
    parameters = expert_parameters(layer.experts)
    if not parameters:
        raise ModelError(f"{layer.name} has no parameters with one entry per expert: already offloaded?")
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ModelError(f"{layer.name}.{name} has no weights (meta device): load the model before offloading it")
        if parameter.dtype not in _DTYPES.values():
            raise PlanError(
                f"{layer.name}.{name} is {parameter.dtype}: not yet supported by the engine, load it in bf16"
            )
        if weights is not None and parameter.dtype is not stored_dtype(weights):
            raise PlanError(
                f"the plan stores experts in {weights} but {layer.name}.{name} is {parameter.dtype}: load it so"
            )


def stored_dtype(weights: str) -> torch.dtype:
    """The type that a weight format stores. PlanError for a quantised format."""
    parsed = WeightFormat.parse(weights)
    if parsed.quantised:
        plain = ", ".join(name for name in FORMATS if not WeightFormat.parse(name).quantised)
        raise PlanError(f"weight format {weights!r} is not yet supported by the engine; it serves {plain}")
    return _DTYPES[parsed.name]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
