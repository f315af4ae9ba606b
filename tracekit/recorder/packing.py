"""Forward passes on their way to the host: what their layers chose, stacked on the device and copied at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.choice import NONE
from tracekit.recorder.seam import MoeLayer
from tracekit.rows import UNUSED

Captured = dict[tuple[str, int, int], Tensor]  # (what, lookahead distance or 0, layer) -> [tokens, k or experts]


class Pass(NamedTuple):
    """What one forward pass left behind, on the model's device, and the layers that it ran."""

    layers: Sequence[MoeLayer]
    captured: Captured


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """What the gates chose in forward passes; a row per token, padding included, in the model's (batch, time)
    order, pass after pass.

    experts u16 and weights f16 [tokens, layers, top_k], unused slots 65535; logits f16 [tokens, layers,
    experts]; lookahead[D] f16 [tokens, layers - D, experts]: gate l + D on the hidden state entering gate l.
    """

    experts: NDArray[np.uint16]
    weights: NDArray[np.float16]
    logits: NDArray[np.float16] | None
    lookahead: dict[int, NDArray[np.float16]]


class _Part(NamedTuple):
    """One array of a routing: entries for layers 0 to `layers`, each `width` wide, `filler` where there is nothing."""

    what: str
    distance: int
    layers: int
    width: int
    filler: float


class Packed:
    """Passes whose copy to the host is under way. `result` waits for it; it may be called on any thread."""

    def __init__(self, layers: Sequence[MoeLayer], parts: list[_Part], tokens: list[int]) -> None:
        self.tokens = tokens  # of each pass, padding included
        self._layers, self._parts = layers, parts
        self._blocks: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def add(self, block: Tensor) -> None:
        """Start the copy of [tokens, values] int16."""
        if block.device.type != "cuda":
            self._blocks.append((block.cpu(), None))
            return
        host = block.to("cpu", non_blocking=True)  # into pinned memory
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(block.device))
        self._blocks.append((host, event))

    def result(self, rows: Sequence[NDArray[np.intp] | None]) -> Routing:
        """The passes' routing: of each pass the given rows, or all. ModelError for weights that are not finite."""
        arrays = []
        for block, event in self._blocks:
            if event is not None:
                event.synchronize()
            arrays.append(block.numpy())
        host = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        starts = np.concatenate([[0], np.cumsum(self.tokens)[:-1]])
        whole = all(chosen is None or len(chosen) == count for chosen, count in zip(rows, self.tokens, strict=True))
        if not whole:
            kept = [
                start + (np.arange(count) if chosen is None else chosen)
                for start, count, chosen in zip(starts, self.tokens, rows, strict=True)
            ]
            host = host[np.concatenate(kept)]
        ends = np.cumsum([part.layers * part.width for part in self._parts])
        split = iter(np.split(host, ends[:-1], axis=1))
        found = {
            (part.what, part.distance): next(split).reshape(len(host), part.layers, part.width) for part in self._parts
        }
        experts, weights = found["ids", 0].view(np.uint16), found["weights", 0].view(np.float16)
        wrong = ~np.isfinite(weights)
        if wrong.any() and (wrong := wrong & (experts != UNUSED)).any():
            layer = self._layers[int(np.argwhere(wrong)[0, 1])]
            raise ModelError(
                f"the gate of {layer.name} gave weights that are not finite: the model is damaged, "
                "or its dtype overflows"
            )
        return Routing(
            experts,
            weights,
            found["logits", 0].view(np.float16) if ("logits", 0) in found else None,
            {distance: array.view(np.float16) for (what, distance), array in found.items() if what == "ahead"},
        )


def pack(
    passes: Sequence[Pass],
    layers: Sequence[MoeLayer],
    top_k: int,
    num_experts: int,
    logits: bool,
    distances: Sequence[int],
) -> Packed:
    """Stack what passes captured, few operations for many passes, and start its copy to the host."""
    count, nothing = len(layers), float("-inf")
    parts = [_Part("ids", 0, count, top_k, NONE), _Part("weights", 0, count, top_k, 0.0)]
    if logits:
        parts.append(_Part("logits", 0, count, num_experts, nothing))
    parts += [_Part("ahead", distance, count - distance, num_experts, nothing) for distance in distances]
    tokens = [_tokens(one) for one in passes]
    packed = Packed(layers, parts, tokens)
    with torch.inference_mode():
        for size, group in groupby(zip(passes, tokens, strict=True), lambda pair: pair[1]):
            alike = [one.captured for one, _ in group]
            packed.add(torch.cat([_block(alike, size, part) for part in parts], dim=1))
    return packed


def _tokens(one: Pass) -> int:
    ids = one.captured["ids", 0, one.layers[-1].index]
    return ids.numel() // ids.shape[-1]


def _block(passes: list[Captured], tokens: int, part: _Part) -> Tensor:
    """One part of passes of as many tokens each, [passes * tokens, layers * width] int16."""
    what, distance, layers, width, filler = part
    found = [one.get((what, distance, index)) for one in passes for index in range(layers)]
    present = next((tensor for tensor in found if tensor is not None), None)
    if present is None:  # no layer of these passes looks so far ahead
        device = next(iter(passes[0].values())).device
        stacked = torch.full((len(passes), layers, tokens, width), filler, device=device)
    else:
        alike = [tensor for tensor in found if tensor is not None and tensor.shape == (tokens, width)]
        if len(alike) < len(found):
            empty = present.new_full((tokens, width), filler)
            alike = [empty if tensor is None else _fitted(tensor, tokens, width, filler) for tensor in found]
        stacked = _stack(alike).view(len(passes), layers, tokens, width)
    stacked = stacked.transpose(1, 2).reshape(len(passes) * tokens, layers * width)
    return stacked.to(torch.int16) if what == "ids" else stacked.to(torch.float16).view(torch.int16)


def _fitted(tensor: Tensor, tokens: int, width: int, filler: float) -> Tensor:
    """[tokens, width] of a layer's tensor, filled up where the layer is narrower than others."""
    tensor = tensor.reshape(tokens, -1)
    missing = width - tensor.shape[1]
    return nn.functional.pad(tensor, (0, missing), value=filler) if missing else tensor


def _stack(tensors: list[Tensor]) -> Tensor:
    try:
        return torch.stack(tensors)
    except RuntimeError:  # layers on several devices
        return torch.stack([tensor.to(tensors[0].device) for tensor in tensors])
