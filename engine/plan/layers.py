"""Layers by number: `0-3,7`, the MoE layers of a trace from 0; and slots of their own for some of them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tracekit.errors import CapacityError, PlanError
from tracekit.manifest import MAX_LAYERS

_RANGE = re.compile(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?")
_EXCEPTION = re.compile(r"\s*layers\s+([0-9,\s-]{1,4096}):\s*([0-9]{1,18})\s*")


class LayerSlots(NamedTuple):
    """So many slots in each of these layers; `words` is how a plan names them."""

    words: str
    layers: tuple[int, ...]
    slots: int

    @property
    def text(self) -> str:
        """As it stands in the text of a capacity."""
        return f"layers {self.words}: {self.slots}"


def parse_layers(text: str, where: str) -> tuple[int, ...]:
    """The layers of `0-3,7`, ascending. PlanError, naming `where`, for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if not found[-1:] < [first] <= [last] < [MAX_LAYERS]:
            raise PlanError(f"{where}: {text[:64]!r} names no layers; write 0-3,7: from 0, ascending, none twice")
        found += range(first, last + 1)
    return tuple(found)


def check_layers(layers: Sequence[int], count: int, where: str) -> None:
    """Raise PlanError unless the model has these layers."""
    if layers and layers[-1] >= count:
        raise PlanError(f"{where} names MoE layer {layers[-1]}, but the model has {count}, from 0 to {count - 1}")


def capacity_text(given: object) -> str:
    """The text of a capacity that is given as a list, `["6/layer", {layers = "0-3", slots = 12}]`. Raises PlanError."""
    if not isinstance(given, list) or not given or not isinstance(given[0], str):
        raise PlanError('a list begins with what holds for all layers: ["6/layer", {layers = "0-3", slots = 12}]')
    parts = [given[0]]
    for part in given[1:]:
        table = part if isinstance(part, Mapping) and len(part) == 2 else {}
        layers, slots = table.get("layers"), table.get("slots")
        if not isinstance(layers, str) or not isinstance(slots, int) or isinstance(slots, bool) or slots < 0:
            raise PlanError(f'{str(part)[:64]!r} is no exception: write {{layers = "0-3", slots = 12}}')
        parts.append(LayerSlots(layers.replace(" ", ""), (), slots).text)
    return "; ".join(parts)


def parse_exceptions(parts: Sequence[str], text: str) -> tuple[LayerSlots, ...]:
    """The exceptions of a capacity's text, `layers 0-3: 12` each. Raises CapacityError, PlanError."""
    found: list[LayerSlots] = []
    for part in parts:
        match = _EXCEPTION.fullmatch(part)
        if match is None:
            raise CapacityError(f"capacity {text[:64]!r}: {part.strip()[:64]!r} is no exception; write layers 0-3: 12")
        words = "".join(match[1].split())
        found.append(LayerSlots(words, parse_layers(words, "cache.capacity"), int(match[2])))
    named = [layer for one in found for layer in one.layers]
    if len(set(named)) < len(named):
        twice = next(layer for layer in named if named.count(layer) > 1)
        raise CapacityError(f"capacity {text[:64]!r} says twice what layer {twice} has")
    return tuple(found)
