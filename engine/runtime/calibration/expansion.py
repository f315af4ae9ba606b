"""The time of expanding a quantised expert, measured on the engine's own slabs, as the simulator reads it."""

from collections.abc import Sequence
from functools import partial

import msgspec
import torch
from torch import Tensor, nn

from engine.hardware import Expansion
from engine.hardware.roofline import SECOND
from engine.plan.weights import WeightFormat
from engine.runtime.calibration import probes
from engine.runtime.calibration.probes import Figure, clamp
from engine.runtime.storage.random_weights import random_slabs
from engine.runtime.storage.slab_layout import Layout, layout_of
from tracekit.errors import PlanError

PART = 4  # a small expert is so many times smaller each way: its time is mostly that of launching kernels


class OneExpert(nn.Module):
    """The shapes of one gated expert of width x inner, as most families have it."""

    num_experts, is_transposed, has_gate, is_concatenated = 1, False, True, True

    def __init__(self, width: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        for name, shape in (("gate_up_proj", (1, 2 * inner, width)), ("down_proj", (1, width, inner))):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), False))


def check_formats(formats: Sequence[str]) -> None:
    """Raise PlanError unless every format is one that is expanded."""
    for word in formats:
        if not WeightFormat.parse(word).quantised:
            raise PlanError(f"{word} needs no expansion: give quantised formats, such as hqq-4bit")


def measure_expansion(
    device: torch.device, dtype: torch.dtype, word: str, repeats: int
) -> tuple[Figure, Figure, Expansion]:
    """Expanding a large and a small expert from slabs that no cache holds, and what follows. PlanError."""
    figures = []
    for width in (probes.WIDTH, probes.WIDTH // PART):
        layout = layout_of(OneExpert(width, width // 2, dtype), word)
        count = max(2, probes.COLD_BYTES // layout.bytes // 2)
        slabs = torch.empty(min(count, 64), layout.bytes, dtype=torch.uint8)
        random_slabs(layout, slabs, seed=0)
        placed = slabs.to(device)
        expand = partial(_expand, layout, placed)
        with torch.inference_mode():
            times = probes.sample(device, expand, repeats)
        figures.append(Figure.of(f"expanding {word}, an expert of {_weights(width)} weights", times))
    large, small = figures
    return large, small, expansion_of(word, large.ns, small.ns)


def expansion_of(word: str, large_ns: float, small_ns: float) -> Expansion:
    """A fixed time and a rate, from what a large and a small expert of `measure_expansion` take."""
    weights, fewer = _weights(probes.WIDTH), _weights(probes.WIDTH // PART)
    if large_ns > small_ns:
        rate = (weights - fewer) * SECOND / (large_ns - small_ns)
    else:  # a machine too busy to tell them apart
        rate = weights * SECOND / max(large_ns, 1.0)
    fixed = max(0.0, small_ns - fewer * SECOND / rate)
    figures = {"weights_per_s": clamp(rate, 1_000, 10**15), "per_expert_ns": clamp(fixed, 0, 10**10)}
    return msgspec.convert({"bits": WeightFormat.parse(word).bits, **figures}, Expansion)


def by_bits(found: Sequence[Expansion]) -> list[Expansion]:
    """One for each number of bits, ascending; of several the slowest."""
    slowest: dict[int, Expansion] = {}
    for one in found:
        if one.bits not in slowest or one.weights_per_s < slowest[one.bits].weights_per_s:
            slowest[one.bits] = one
    return [slowest[bits] for bits in sorted(slowest)]


def _expand(layout: Layout, slabs: Tensor, number: int) -> object:
    return layout.weights(layout.views(slabs[number % len(slabs)]))


def _weights(width: int) -> int:
    return 3 * width * (width // 2)
