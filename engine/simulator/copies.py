"""The bytes of an expert's copies as a plan stores them."""

from collections.abc import Sequence

from engine.plan.weights import WeightFormat
from engine.shapes import ModelShape
from tracekit.errors import PlanError
from tracekit.manifest import Manifest


def stored_expert_bytes(manifest: Manifest, shape: ModelShape | None, experts_format: str | None) -> list[int]:
    """Bytes of one expert of each MoE layer as a plan stores it; empty when nothing says. Raises PlanError."""
    layers = len(manifest.experts_per_layer)
    if shape is not None:
        return [shape.expert_bytes(WeightFormat.parse(experts_format or "bf16"))] * layers
    if experts_format is None:
        return list(manifest.expert_bytes)
    weight_format = WeightFormat.parse(experts_format)
    if weight_format.quantised:
        raise PlanError(
            f"weights.experts = {experts_format!r} needs the sizes of an expert's matrices: give a model shape"
        )
    return [count * weight_format.plain_bytes for count in manifest.expert_params]


def copies_bytes(manifest: Manifest, shape: ModelShape | None, formats: Sequence[str | None]) -> list[int]:
    """Bytes of one expert of each MoE layer in each of these formats, one after the other; empty when nothing says.

    A manifest may hold them all, as an engine that stores several says them. Raises PlanError.
    """
    layers = len(manifest.experts_per_layer)
    if shape is None and len(formats) > 1 and len(manifest.expert_bytes) == layers * len(formats):
        return list(manifest.expert_bytes)
    found = [stored_expert_bytes(manifest, shape, one) for one in formats]
    return [size for sizes in found for size in sizes] if all(found) else []
