"""Costs: what each piece of work takes on a modelled machine, in integer nanoseconds."""

from dataclasses import dataclass

import numpy as np

from engine.hardware import HardwareProfile
from engine.shapes import ModelShape
from engine.weights import WeightFormat
from tracekit.errors import HardwareError, PlanError
from tracekit.manifest import Manifest

SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of every MoE layer of a trace on one machine.

    Arrays [layers] i64: `copy_ns` (one expert over the link), `expert_ns` (one expert's weights read on the device),
    `dense_ns` (the layer's dense weights read). Scalars: picoseconds of arithmetic per token of a dense part and per
    (token, expert), of memory per context token, and nanoseconds once per expert of a visit, per copy asked for, per
    layer and per step.
    `scale` turns time on the trace's layers into time on the model's.
    """

    expert_bytes: tuple[int, ...]
    copy_ns: np.ndarray
    expert_ns: np.ndarray
    dense_ns: np.ndarray
    expert_token_ps: int
    expert_overhead_ns: int
    dense_token_ps: int
    context_ps: int
    copy_overhead_ns: int
    layer_overhead_ns: int
    readback_ns: int
    step_ns: int
    scale: float
    notes: tuple[str, ...]


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


def model_costs(
    manifest: Manifest,
    hardware: HardwareProfile,
    shape: ModelShape | None,
    experts_format: str | None,
    attention_format: str | None,
) -> Costs:
    """Costs of replaying a trace as if its model had `shape` (its own sizes when None) on `hardware`.

    Roofline model: work takes the longer of its memory traffic and its arithmetic. Quantised experts are expanded
    to 16 bits before use, which adds one write and one read of the expanded weights (as HQQ's dequantisation does).
    """
    layers = len(manifest.experts_per_layer)
    expert_bytes = stored_expert_bytes(manifest, shape, experts_format)
    if len(expert_bytes) != layers:
        raise PlanError("the trace does not say how large its experts are; time needs a model shape (--model-shape)")
    if hardware.link.copy_engines != 1:
        raise HardwareError(
            f"hardware profile {hardware.name}: link.copy_engines = {hardware.link.copy_engines} is not modelled; use 1"
        )
    notes: list[str] = []
    flops = hardware.device.compute_flops_per_s
    quantised = experts_format is not None and WeightFormat.parse(experts_format).quantised
    if shape is None:
        params = manifest.expert_params or [size // 2 for size in expert_bytes]
        dense_bytes = head_bytes = kv_bytes = 0
        dense_params = 0
        scale = 1.0
        notes.append("no model shape: attention and other dense work cost nothing but the fixed overhead")
    else:
        params = [shape.expert_params] * layers
        attention = WeightFormat.parse(attention_format or "bf16")
        plain = WeightFormat.parse("bf16")
        moe = shape.moe_layers
        dense_bytes = sum(shape.layer_bytes(layer, attention, plain) for layer in moe) // len(moe)
        dense_params = sum(shape.attention_params + shape.other_params(layer) for layer in moe) // len(moe)
        rest = sum(shape.layer_bytes(layer, attention, plain) for layer in range(shape.layers) if layer not in moe)
        head_bytes = (rest + shape.head_bytes(plain)) * layers // len(moe)
        kv_bytes = shape.kv_bytes_per_token("bf16") // shape.layers
        scale = len(moe) / layers
        if len(moe) != layers:
            notes.append(f"the trace has {layers} MoE layers, {shape.name} has {len(moe)}: time is scaled by {scale:g}")
        if (max(manifest.experts_per_layer), manifest.top_k) != (shape.experts, shape.top_k):
            notes.append(
                f"the trace routes top-{manifest.top_k} of {max(manifest.experts_per_layer)} experts, {shape.name} top-"
                f"{shape.top_k} of {shape.experts}: each expert has {shape.name}'s size, the routing is the trace's"
            )
    expanded = [4 * count for count in params] if quantised else [0] * layers
    overhead = hardware.overhead
    return Costs(
        expert_bytes=tuple(expert_bytes),
        copy_ns=np.array([hardware.copy_ns(size) for size in expert_bytes], np.int64),
        expert_ns=np.array(
            [hardware.compute_ns(0, size + extra) for size, extra in zip(expert_bytes, expanded, strict=True)],
            np.int64,
        ),
        dense_ns=np.full(layers, hardware.compute_ns(0, dense_bytes), np.int64),
        expert_token_ps=-(-2 * max(params) * 1000 * SECOND // flops),
        expert_overhead_ns=overhead.per_expert_ns,
        dense_token_ps=-(-2 * dense_params * 1000 * SECOND // flops),
        context_ps=-(-kv_bytes * 1000 * SECOND // hardware.device.memory_bandwidth_bytes_per_s),
        copy_overhead_ns=overhead.per_copy_ns,
        layer_overhead_ns=overhead.per_layer_ns,
        readback_ns=overhead.gate_readback_ns,
        step_ns=int((overhead.per_step_ns) / scale) + hardware.compute_ns(0, head_bytes),
        scale=scale,
        notes=tuple(notes),
    )
