"""Triton's kernels: whether they can run here, and the one place where they are launched.

Triton comes with torch wherever those are built for CUDA; elsewhere it is an optional extra, whose interpreter
(TRITON_INTERPRET=1, set before a kernel's module is imported) runs kernels on the CPU, slowly, for tests.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from tracekit.errors import PlanError

P = ParamSpec("P")
R = TypeVar("R")

Argument = Tensor | int | tuple[object, ...] | object
Touched = Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]
"""() -> (the tensors that a launch reads, those that it writes), where somebody asks"""


class Kernel(Protocol):
    """What `triton.jit` makes of a function."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


def launch(kernel: Kernel, grid: tuple[int, ...], arguments: dict[str, Argument], touched: Touched) -> None:
    """Launch a kernel on the current stream: the one seam where an emulated device takes over.

    A multiplication and the addition after it stay two roundings, as in torch.
    """
    kernel[grid](**arguments, enable_fp_fusion=False)


def kernel(function: Callable[..., None]) -> Kernel:
    """`triton.jit` of a function that is launched."""
    import triton

    # Numbers that differ from visit to visit: a kernel compiled anew for those that are 1, or multiples of 16, gains
    # nothing.
    made: Kernel = triton.jit(function, do_not_specialize=("tiles", "assignments", "first_tile"))
    return made


def part(function: Callable[P, R]) -> Callable[P, R]:
    """`triton.jit` of a function that kernels call."""
    import triton

    made: Callable[P, R] = triton.jit(function)
    return made


@cache
def has_triton() -> bool:
    """Whether the package is installed."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def compiles_for(device: torch.device) -> bool:
    """Whether kernels can run on tensors of a device."""
    return has_triton() and (device.type == "cuda" or (device.type == "cpu" and interpreted()))


def check_kernels(device: torch.device) -> None:
    """Raise PlanError unless grouped kernels can run on a device."""
    wanted = 'compute.kernels = "grouped"'
    if not has_triton():
        raise PlanError(f'{wanted} needs Triton, which is not installed: pip install "moe-tracekit[kernels]"')
    if not compiles_for(device):
        raise PlanError(f'{wanted} runs on a CUDA device, not on {device}: leave the key out, or use "eager"')


def triton_type(dtype: torch.dtype) -> object:
    """Triton's word for a type."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
