"""The plans whose speed and loss are compared: formats alone, precision tiers, altered routing, and both together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.shapes import load_shape

HIGH, LOW = "hqq-4bit", "hqq-2bit-g16-m32"
"""The second has groups that divide the experts of both models and of those whose sizes they are given."""
SHAPES = {"mixtral-mini": "mixtral-8x7b", "qwen3-moe-mini": "qwen3-30b-a3b"}
"""Whose sizes experts have in time; of the second the routing is of fewer experts."""
FORMATS = ("bf16", "hqq-8bit", HIGH, "hqq-3bit", LOW)
STRENGTHS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "cache-prior": ("strength", (0.1, 0.2, 0.3, 0.5)),
    "substitute": ("strength", (0.1, 0.2, 0.3, 0.5)),
    "drop-cold": ("share", (0.25, 0.5, 0.75, 1.0)),
    "adaptive-k": ("share", (0.95, 0.9, 0.8, 0.7)),
}
THRESHOLDS: Mapping[str, tuple[float, ...]] = {"mixtral-mini": (0.2, 0.35, 0.45), "qwen3-moe-mini": (0.1, 0.2, 0.3)}
"""Of `miss-below`, by model: of two experts the lighter one has less than a half, of four the lightest less than a
quarter."""
SLOTS: Mapping[str, tuple[int, ...]] = {"mixtral-mini": (2, 3, 4), "qwen3-moe-mini": (8, 12, 16)}
"""Of each layer: 25, 37.5 and 50 % of its experts."""
BASE = HIGH


class Way(NamedTuple):
    """A plan and its kind: "format", "tiers", "routing" or "both"."""

    kind: str
    plan: Plan


def ways(model: str, slots: int) -> dict[str, Way]:
    """Everything that is compared at so many slots of each layer, by name; `BASE` is what all else stands against."""

    def plan(word: str = HIGH, capacity: int = slots, **more: Any) -> Plan:
        return Plan(f"{capacity}/layer", weights=None if word == "bf16" else word, **more)

    def altered(policy: str, number: float) -> dict[str, object]:
        return {"policy": policy, STRENGTHS[policy][0]: number}

    # A quarter of the slots is given up for as many low ones as fit there.
    given, shape = max(1, slots // 4), load_shape(SHAPES[model])
    low = given * shape.expert_bytes(WeightFormat.parse(HIGH)) // shape.expert_bytes(WeightFormat.parse(LOW))
    beside = {"low": LOW, "capacity": f"{low}/layer", "rule": "miss-below"}

    def tiers(threshold: float, **more: Any) -> Plan:
        return plan(capacity=slots - given, precision=beside | {"threshold": threshold}, **more)

    found = {word: Way("format", plan(word)) for word in FORMATS}
    found |= {f"tiers {at:g}": Way("tiers", tiers(at)) for at in THRESHOLDS[model]}
    for policy, (_, numbers) in STRENGTHS.items():
        found |= {f"{policy} {number:g}": Way("routing", plan(routing=altered(policy, number))) for number in numbers}
    middle = THRESHOLDS[model][1]
    for policy, number in (("cache-prior", 0.2), ("cache-prior", 0.3)):
        routing = altered(policy, number)
        found[f"{policy} {number:g}, hqq-3bit"] = Way("both", plan("hqq-3bit", routing=routing))
        found[f"{policy} {number:g}, tiers {middle:g}"] = Way("both", tiers(middle, routing=routing))
    return found
