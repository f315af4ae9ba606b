"""Attention's projections stay on the device, quantised in a format of their own, and are expanded when used."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.plan.weights import WeightFormat
from engine.runtime.storage.expansion import expanded
from engine.runtime.storage.host_store import stored_dtype
from engine.runtime.storage.quantise import quantised_on
from tracekit.errors import PlanError
from tracekit.recorder.seam import text_decoder

NAMES = ("self_attn", "attn", "attention", "self_attention")


class QuantisedLinear(nn.Module):
    """A linear layer whose matrix [outputs, inputs] is stored as HQQ codes, scales and zeros."""

    def __init__(self, linear: nn.Linear, weight_format: WeightFormat, device: torch.device) -> None:
        super().__init__()
        self.format, self.dtype = weight_format, linear.weight.dtype
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        if linear.weight.is_meta:  # filled later, from a directory of slabs
            for stored in weight_format.tensors(self.out_features, self.in_features):
                empty = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype), device="meta")
                self.register_buffer(_buffer(stored.name), empty)
            return
        for name, value in quantised_on(device, linear.weight.detach(), weight_format).items():
            self.register_buffer(_buffer(name), value.clone())

    @property
    def weight(self) -> Tensor:
        """The matrix, expanded."""
        stored = {name.replace("_", "."): buffer for name, buffer in self.named_buffers()}
        return expanded(stored, self.format, self.out_features, self.in_features, self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored matrix."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)


def check_attention(model: nn.Module, weights: str | None) -> None:
    """Raise PlanError for attention that cannot be stored in a weight format. None stores it as it is."""
    if weights is None:
        return
    dtype = getattr(model, "dtype", torch.float32)
    if stored_dtype(weights, dtype) is not dtype:
        raise PlanError(f"the plan stores attention in {weights} but the model is not loaded so")
    parsed = WeightFormat.parse(weights).served()
    if not parsed.quantised:
        return
    found = list(projections(model))
    if not found:
        raise PlanError(f"{type(model).__name__} has no linear layers in its attention that {weights} could store")
    for _, _, linear in found:
        parsed.tensors(*linear.weight.shape)


def quantise_attention(model: nn.Module, weights: str, device: torch.device) -> None:
    """Replace the attention's projections by quantised ones; nothing to do for an unquantised format."""
    parsed = WeightFormat.parse(weights).served()
    if parsed.quantised:
        for parent, name, linear in list(projections(model)):
            setattr(parent, name, QuantisedLinear(linear, parsed, device))


def attention_bytes(model: nn.Module) -> int:
    """Bytes of all quantised projections of a model."""
    return sum(module.stored_bytes for module in model.modules() if isinstance(module, QuantisedLinear))


def attention_format_bytes(model: nn.Module, weights: str) -> tuple[int, int]:
    """Bytes of the attention's projections as the model holds them, and as a weight format would."""
    parsed = WeightFormat.parse(weights).served()
    found = [linear.weight for _, _, linear in projections(model)]
    plain = sum(weight.nbytes for weight in found)
    return plain, sum(parsed.tensor_bytes(*weight.shape) for weight in found) if parsed.quantised else plain


def projections(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer within the attention of a model's text decoder: parent, name, module."""
    _, decoder = text_decoder(model)
    for path, parent in decoder.named_modules():
        if any(part in NAMES for part in path.split(".")):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    yield parent, name, child


def _buffer(name: str) -> str:
    return name.replace(".", "_")
