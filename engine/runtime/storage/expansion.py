"""Quantised matrices expanded for use: by one kernel each where Triton's run, else by `dequantise`; the same bits.

Two ways, since no compiler is at hand everywhere. On a CUDA device `dequantise` is some ten kernels, which move the
expanded weights through memory fifteen times; one kernel of the same arithmetic reads the codes once and writes the
result. Triton comes with torch there. On a CPU torch.compile would do it, but asks for a C++ compiler on the user's
machine when the engine runs; there operations cost little to start, and plain torch stays.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.plan.weights import WeightFormat
from engine.runtime.experts import launching
from engine.runtime.storage.quantise import dequantise

BLOCK = 512  # words that a program reads

INNER = tuple(f"{name}{part}" for name in ("scale", "zero") for part in ("", ".scale", ".zero"))


def by_kernel(device: torch.device) -> bool:
    """Whether matrices on a device are expanded by a kernel."""
    return device.type == "cuda" and launching.has_triton()


def expand(stored: Mapping[str, Tensor], weight_format: WeightFormat, rows: int, cols: int, target: Tensor) -> Tensor:
    """Fill `target` [rows, cols], whose rows follow each other, with a matrix from its stored tensors; returns it."""
    if by_kernel(target.device):
        return expand_by_kernel(stored, weight_format, rows, cols, target)
    return target.copy_(dequantise(stored, weight_format, rows, cols))


def expanded(
    stored: Mapping[str, Tensor], weight_format: WeightFormat, rows: int, cols: int, dtype: torch.dtype
) -> Tensor:
    """The matrix [rows, cols] in memory of its own: the block that the last one had, where torch's allocator caches."""
    device = stored["codes"].device
    if by_kernel(device):
        target = torch.empty(rows, cols, dtype=dtype, device=device)
        return expand_by_kernel(stored, weight_format, rows, cols, target)
    return dequantise(stored, weight_format, rows, cols).to(dtype)


def expand_by_kernel(
    stored: Mapping[str, Tensor], weight_format: WeightFormat, rows: int, cols: int, target: Tensor
) -> Tensor:
    """`expand`, wherever kernels run."""
    from engine.runtime.experts import hqq_kernels

    bits, group = weight_format.bits, weight_format.group
    words, parts = stored["codes"].shape[0], 10 if bits == 3 else 8 // bits
    # What a format does not have, its kernel does not read.
    inner = {name.replace(".", "_"): stored.get(name, stored["scale"]) for name in INNER}
    arguments: dict[str, launching.Argument] = {
        "target": target,
        "packed": stored["codes"],
        **inner,
        "VALUES": rows * cols,
        "BITS": bits,
        "GROUP": group,
        "WORDS": words,
        "META": stored["scale"].shape[1] if weight_format.meta_group else 0,
        "PARTS": parts,
        "PLACES": 16 if bits == 3 else parts,
        "BLOCK": BLOCK,
    }
    reads, grid = (stored["codes"], *inner.values()), (-(-words * group // BLOCK),)
    launching.launch(hqq_kernels.expand, grid, arguments, lambda: (reads, (target,)))
    return target
