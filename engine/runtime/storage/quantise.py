"""HQQ (Badri & Shaji 2023): matrices into codes, scales and zeros by the `hqq` package, and back by plain torch.

`hqq` chooses scales and zeros. Codes are then rounded to the scales and zeros as they are stored (in fp16, or in 8
bits of their own), which `hqq` itself leaves at what they were before; for given scales and zeros no codes are nearer.
What is stored, and where, is `engine.plan.weights`' to say.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.plan.weights import WeightFormat
from tracekit.errors import HardwareError, PlanError


def quantise(matrix: Tensor, weight_format: WeightFormat) -> dict[str, Tensor]:
    """The stored tensors of a [rows, cols] matrix, by the names of `WeightFormat.tensors`.

    On the matrix's device. PlanError without the hqq package.
    """
    quantizer, options = quantizer_of_hqq(), {"device": matrix.device.type}
    bits, group = weight_format.bits, weight_format.group
    values = matrix.detach().float()
    _, meta = quantizer.quantize(values, bits, group_size=group, axis=1, bitpack=False, **options)
    stored: dict[str, Tensor] = {}
    for name in ("scale", "zero"):
        if weight_format.meta_group:
            codes, inner = quantizer.quantize(
                meta[name].float(), 8, group_size=weight_format.meta_group, optimize=False, **options
            )
            stored[name] = codes
            stored |= {f"{name}.{part}": inner[part].half() for part in ("scale", "zero")}
        else:
            stored[name] = meta[name].half()
    scale, zero = meta_data(stored, weight_format)  # [groups, 1]
    flat = values.reshape(-1, group)
    codes = torch.where(scale == 0, torch.zeros_like(flat), flat / scale + zero)
    packing = quantizer.bit_to_packing[bits]
    return {"codes": quantizer.pack[packing](codes.round_().clamp_(0, 2**bits - 1))} | stored


def quantised_on(device: torch.device, matrix: Tensor, weight_format: WeightFormat) -> dict[str, Tensor]:
    """`quantise` on a device. HardwareError when there is no room."""
    try:
        return quantise(matrix.to(device), weight_format)
    except torch.OutOfMemoryError as error:
        rows, cols = matrix.shape
        raise HardwareError(
            f"{device} has no room to quantise a matrix of {rows} x {cols} beside the slots: give the cache less "
            f"capacity, or convert with --slabs where there is more ({' '.join(str(error).split())[:120]})"
        ) from error


def dequantise(stored: Mapping[str, Tensor], weight_format: WeightFormat, rows: int, cols: int) -> Tensor:
    """The matrix [rows, cols] in float32: (code - zero) * scale, as hqq expands it."""
    scale, zero = meta_data(stored, weight_format)
    codes = unpack(stored["codes"], weight_format.bits)[: len(scale)]  # [groups, group]
    expanded: Tensor = codes.to(torch.float32).sub_(zero).mul_(scale)
    return expanded.view(rows, cols)


def meta_data(stored: Mapping[str, Tensor], weight_format: WeightFormat) -> tuple[Tensor, Tensor]:
    """Scales and zeros in float32 [groups, 1]."""
    found = []
    for name in ("scale", "zero"):
        value = stored[name].float()
        if weight_format.meta_group:
            value = (value - stored[f"{name}.zero"].float()) * stored[f"{name}.scale"].float()
        found.append(value.reshape(-1, 1))
    return found[0], found[1]


def unpack(codes: Tensor, bits: int) -> Tensor:
    """The codes u8 [groups, group] of hqq's packing: all first ones of its words, then all second ones, ..."""
    if bits == 8:
        return codes
    width, count = (30, 10) if bits == 3 else (8, 8 // bits)
    shifts = torch.arange(width - bits, width - bits * (count + 1), -bits, device=codes.device)
    parts: Tensor = torch.bitwise_right_shift(codes[None], shifts.to(codes.dtype)[:, None, None])
    parts = torch.bitwise_and(parts, 2**bits - 1)
    return parts.to(torch.uint8).reshape(-1, codes.shape[1])


@cache
def quantizer_of_hqq() -> Any:
    """hqq's `Quantizer`. PlanError when the package is not installed."""
    try:
        from hqq.core.quantize import Quantizer
    except ImportError as error:
        raise PlanError(f"quantising weights needs the hqq package ({error}): pip install hqq") from None
    return Quantizer
