"""The time of expanding a quantised expert, measured on the engine's own slabs, as the simulator reads it.

By size: of small experts it is all launches, of large ones all memory, and on a CPU what no longer fits its caches
takes several times longer still. By bits and kind of scales: those stored in codes of their own take kernels more.
"""

from collections.abc import Sequence
from functools import partial

import msgspec
import torch
from torch import Tensor, nn

from engine.hardware import Expanded, Expansion
from engine.hardware.roofline import SECOND
from engine.plan.weights import WeightFormat
from engine.runtime.calibration import probes
from engine.runtime.calibration.probes import Figure, clamp, timed
from engine.runtime.calibration.repeated import ascending, repeated
from engine.runtime.clocks.device_time import device_time
from engine.runtime.storage.random_weights import random_slabs
from engine.runtime.storage.slab_layout import Layout, layout_of
from tracekit.errors import PlanError

PARTS = (16, 8, 4, 2, 1)
"""How many times smaller experts are than the probes' largest, each way."""
SMALLEST = 128
"""Narrower ones are not measured: formats cannot cut them into groups."""


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
) -> tuple[list[Figure], Expansion]:
    """Expanding experts of several sizes from slabs that no cache holds, and what follows. PlanError."""
    widths = [probes.WIDTH // part for part in PARTS if probes.WIDTH // part >= SMALLEST]
    layouts = [layout_of(OneExpert(width, width // 2, dtype), word) for width in widths]
    placed = [_slabs(layout).to(device) for layout in layouts]

    def expand(layout: Layout, slabs: Tensor, number: int) -> object:
        return layout.weights(layout.views(slabs[number % len(slabs)]))

    def turn(number: int) -> list[float]:
        found = []
        for layout, slabs in zip(layouts, placed, strict=True):
            expand(layout, slabs, 2 * number)  # code and allocator as the engine has them; another slab than the next
            found.append(timed(device_time(device), partial(expand, layout, slabs, 2 * number + 1)))
        return found

    with torch.inference_mode():
        samples = repeated(turn, repeats, warm_up=2)
    figures = [
        Figure.of(f"expanding {word}, an expert of {_weights(width)} weights", times)
        for width, times in zip(widths, samples, strict=True)
    ]
    return figures, expansion_of(word, [_weights(width) for width in widths], [figure.ns for figure in figures])


def expansion_of(word: str, weights: Sequence[int], times: Sequence[float]) -> Expansion:
    """What expanding experts of these sizes, ascending, and times (ns) says of all sizes."""
    points = [
        Expanded(weights=size, ns=clamp(ns, 1, 10**10)) for size, ns in zip(weights, ascending(times), strict=True)
    ]
    form, rate = WeightFormat.parse(word), clamp(weights[-1] * SECOND / points[-1].ns, 1_000, 10**15)
    given = {"bits": form.bits, "meta": form.meta_group > 0, "weights_per_s": rate, "points": points}
    return msgspec.convert(given, Expansion)


def by_kind(found: Sequence[Expansion]) -> list[Expansion]:
    """One for each number of bits and kind of scales, ascending; of several the slowest on the largest expert."""
    slowest: dict[tuple[int, bool], Expansion] = {}
    for one in found:
        kind = (one.bits, one.meta)
        if kind not in slowest or one.weights_per_s < slowest[kind].weights_per_s:
            slowest[kind] = one
    return [slowest[kind] for kind in sorted(slowest)]


def _slabs(layout: Layout) -> Tensor:
    """u8 [experts, bytes]: more than a cache holds, but at most 64."""
    count = max(2, probes.COLD_BYTES // layout.bytes // 2)
    slabs = torch.empty(min(count, 64), layout.bytes, dtype=torch.uint8)
    random_slabs(layout, slabs, seed=0)
    return slabs


def _weights(width: int) -> int:
    return 3 * width * (width // 2)
