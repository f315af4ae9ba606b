"""Capacity: how much of the experts the device holds, in the ways a plan may say it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from engine.plan.layers import LayerSlots, check_layers, parse_exceptions
from tracekit.errors import CapacityError, PlanError, TracekitError

_SYNTAX = re.compile(r"\s*([0-9]{1,40}(?:\.[0-9]{1,40})?)\s*(%|[KMG]iB|[kMG]?B)?\s*(/layer)?\s*")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class Capacity:
    """A parsed capacity.

    `512` is slots, `2000MiB` bytes and `25%` a share of all experts, each for the whole model; with `/layer` behind it,
    each layer has that much of its own, and experts of other layers never take it; some layers may have slots of their
    own number (`6/layer; layers 0-3,7: 12`). `auto` is as much as fits on the
    machine that runs the model, which only the engine can say.
    """

    text: str
    amount: Fraction
    unit: str  # "slots", "bytes", "share" or "auto"
    per_layer: bool
    exceptions: tuple[LayerSlots, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Capacity":
        """Parse a capacity. Raises CapacityError, and PlanError for layers that cannot be."""
        usual, *others = text.split(";")
        if others and all(part.strip() for part in others):
            found = cls.parse(usual.strip())
            if not found.per_layer or found.unit not in ("slots", "share"):
                raise CapacityError(
                    f"capacity {text[:64]!r}: layers with slots of their own stand beside slots per layer for the "
                    "others, as in 6/layer; layers 0-3: 12"
                )
            exceptions = parse_exceptions(others, text)
            words = "; ".join([found.text, *(one.text for one in exceptions)])
            return replace(found, text=words, exceptions=exceptions)
        if text == "auto":
            return cls(text, Fraction(0), "auto", True)
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise CapacityError(
                f"capacity {text[:64]!r} is not understood; "
                "write 4/layer, 512, 2000MiB or 25%, each with or without /layer, or 6/layer; layers 0-3: 12"
            )
        amount, unit, per_layer = Fraction(match[1]), match[2], match[3] is not None
        if unit == "%":
            if amount > 100:
                raise CapacityError(f"capacity {text!r} is more than all experts; give at most 100%")
            return cls(text, amount / 100, "share", per_layer)
        if unit is not None:
            amount *= _UNITS[unit]
        elif amount.denominator != 1:
            raise CapacityError(f"capacity {text!r} is not a whole number of slots")
        if amount > _LARGEST:
            raise CapacityError(f"capacity {text[:64]!r} is larger than any memory")
        return cls(text, amount, "slots" if unit is None else "bytes", per_layer)

    def times(self, factor: Fraction, experts_per_layer: Sequence[int]) -> str:
        """So many times this capacity, as a plan says it; of slots and shares no more than there are experts."""
        if self.exceptions:
            most = max(experts_per_layer)
            scaled = [one._replace(slots=min(int(one.slots * factor), most)).text for one in self.exceptions]
            return "; ".join([replace(self, exceptions=()).times(factor, experts_per_layer), *scaled])
        amount, of_each = self.amount * factor, "/layer" if self.per_layer else ""
        if self.unit == "share":
            return f"{float(min(100 * amount, Fraction(100))):.6f}%{of_each}"
        if self.unit == "bytes":
            return f"{int(amount)}B{of_each}"
        if self.unit == "slots":
            most = max(experts_per_layer) if self.per_layer else sum(experts_per_layer)
            return f"{min(int(amount), most)}{of_each}"
        return self.text

    def groups(
        self, experts_per_layer: Sequence[int], num_experts: int, expert_bytes: Sequence[int]
    ) -> tuple[tuple[int, ...], np.ndarray]:
        """The capacity of each group, and the size of each expert in the same unit.

        Args:
            experts_per_layer: experts of each MoE layer.
            num_experts: the most of any layer; keys are layer * num_experts + expert.
            expert_bytes: bytes of one expert of each layer; empty when unknown.

        Returns:
            Capacities (one, or one per layer) and sizes [layers * num_experts] i64: slots (1) or bytes.
        """
        layers = len(experts_per_layer)
        if self.unit == "auto":
            raise CapacityError(
                "capacity 'auto' is what fits where the model runs; here give 4/layer, 512, 2000MiB or 25%"
            )
        if self.unit == "bytes":
            if len(expert_bytes) != layers:
                raise CapacityError(
                    f"capacity {self.text!r} is in bytes but the bytes of an expert are unknown; "
                    "give slots (4/layer, 512, 25%), a weight format or a model shape"
                )
            size = np.repeat(np.asarray(expert_bytes, np.int64), num_experts)
        else:
            size = np.ones(layers * num_experts, np.int64)
        if self.unit == "share":
            per_layer = [int(self.amount * count) for count in experts_per_layer]
            capacity = per_layer if self.per_layer else [int(self.amount * sum(experts_per_layer))]
        else:
            capacity = [int(self.amount)] * (layers if self.per_layer else 1)
        if self.unit == "slots":
            most = max(experts_per_layer) if self.per_layer else sum(experts_per_layer)
            if capacity[0] > most:
                where = "a layer has" if self.per_layer else "the model has"
                raise CapacityError(f"capacity {self.text!r}: {where} only {most} experts")
        for one in self.exceptions:
            check_layers(one.layers, layers, f"capacity {self.text!r}")
            for layer in one.layers:
                if one.slots > (most := experts_per_layer[layer]):
                    raise CapacityError(f"capacity {self.text!r}: layer {layer} has only {most} experts")
                capacity[layer] = one.slots
        return tuple(capacity), size


def parse_memory(text: str | None, option: str = "--memory") -> int | None:
    """Bytes of `8GiB`, `500MB`, ... PlanError for anything else, naming the option that it was given to."""
    if text is None:
        return None
    try:
        parsed = Capacity.parse(text)
    except TracekitError:
        parsed = None
    if parsed is None or parsed.unit != "bytes" or parsed.per_layer or parsed.amount < 1:
        raise PlanError(f"{option} {text[:64]!r} is no amount of bytes: write 8GiB, 500MB, ...")
    return int(parsed.amount)
