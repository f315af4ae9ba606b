"""What expanding and quantising a matrix take beside the matrix itself, counted on what they really do.

Expansion runs on tensors without storage, quantising on a few rows; every tensor they make is counted while it lives.
"""

from collections.abc import Sequence
from math import gcd, prod

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.plan.weights import WeightFormat
from engine.runtime.storage.expansion import by_kernel
from engine.runtime.storage.quantise import dequantise, quantise
from engine.runtime.storage.slab_layout import Layout, QuantisedLayout

ROWS = 64  # at least so many are quantised to see what all of them would take


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`peak` is the most bytes that tensors made within the block took at a time; views of older ones take none."""

    def __init__(self, *older: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._older = {tensor.untyped_storage()._cdata for tensor in older}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak: int = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not _is_gone(entry[0])}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._older:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (_weakly(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made


def _weakly(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _is_gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def expansion_bytes(layout: Layout, device: torch.device) -> int:
    """The most that expanding one expert takes on a device, the expanded expert included; 0 if it is not expanded."""
    if not isinstance(layout, QuantisedLayout):
        return 0
    if by_kernel(device):
        return sum(prod(shape) * layout.dtype.itemsize for _, shape in layout.shapes)
    slab = torch.empty(layout.bytes, dtype=torch.uint8, device="meta")
    counted = PeakBytes(slab)
    with torch.inference_mode(), counted:
        layout.weights(layout.views(slab))
    return counted.peak


def matrix_expansion_bytes(
    rows: int, cols: int, weight_format: WeightFormat, dtype: torch.dtype, device: torch.device
) -> int:
    """The same of one matrix of its own, such as attention's."""
    if by_kernel(device):
        return rows * cols * dtype.itemsize
    stored = {
        one.name: torch.empty(one.shape, dtype=getattr(torch, one.dtype), device="meta")
        for one in weight_format.tensors(rows, cols)
    }
    counted = PeakBytes(*stored.values())
    with torch.inference_mode(), counted:
        dequantise(stored, weight_format, rows, cols).to(dtype)
    return counted.peak


def quantising_bytes(matrices: Sequence[tuple[int, int]], weight_format: WeightFormat, dtype: torch.dtype) -> int:
    """The most that quantising one of these matrices (rows, columns) takes on the device, the matrix itself included.

    As on a CPU, in single precision; hqq searches in half precision on a GPU, which takes no more.
    """
    rows, cols = max(matrices, key=lambda shape: shape[0] * shape[1])
    # Few rows, but groups of groups as whole as in the matrix.
    unit = weight_format.group * max(weight_format.meta_group or 1, 1)
    least = unit // gcd(cols, unit)
    few = min(rows, -(-ROWS // least) * least)
    matrix = torch.randn(few, cols, generator=torch.Generator().manual_seed(0)).to(dtype)
    counted = PeakBytes(matrix)
    with torch.inference_mode(), counted:
        quantise(matrix, weight_format)
    return -(-(counted.peak + matrix.nbytes) * rows // few)
