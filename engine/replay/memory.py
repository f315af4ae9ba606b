"""Memory that a plan takes: on the device by part, and on the host."""

from typing import NamedTuple

import msgspec
import numpy as np

from engine.hardware import HardwareProfile
from engine.plan.plan import Plan
from engine.plan.tables import CachePlan, PlacementPlan
from engine.plan.weights import WeightFormat
from engine.replay.passes import Steps
from engine.replay.setting import Setting
from engine.shapes import ModelShape
from engine.shapes.load import Load, load_bytes
from engine.shapes.sizes import STATED, dense_bytes, experts_bytes
from tracekit.errors import CapacityError
from tracekit.manifest import Manifest

RESERVE = 20
"""With capacity `auto`, one part in so many stays free: the driver's own, and what an allocator cannot use."""


def load_of(plan: Plan, steps: Steps) -> Load:
    """The plan's load, where it says (`serve`); else the largest there is in a trace's steps."""
    context = plan.serve.context or steps.longest
    sequences = plan.serve.batch or steps.sequences
    prompt = plan.serve.context or steps.longest_prompt
    return Load(context, sequences, max(steps.largest, sequences), min(prompt, context))


class DeviceMemory(NamedTuple):
    """Bytes on the device, by what they are for. Nothing is known of the first three without the model's shape."""

    dense: int
    """Weights outside the routed experts."""
    kv_cache: int
    """Keys and values of all sequences at full context."""
    activations: int
    """What the largest step computes with."""
    slots: int
    """The cache of experts; of both copies, where they have two."""
    staging: int
    """Buffers outside it."""
    expansion: int
    """One expert expanded from its stored format."""

    @property
    def total(self) -> int:
        return sum(self)


def device_memory(setting: Setting) -> DeviceMemory:
    """Device memory of a plan. The sizes of experts must be known (`setting.sizes`)."""
    plan, shape, spec = setting.plan, setting.shape, setting.spec
    largest = [max(sizes) for sizes in setting.tier_sizes]
    if spec.low is None:
        units = np.array(spec.capacity, np.float64) / (1 if plan.capacity.unit == "bytes" else 1 / largest[0])
        slots = int(units.sum() * setting.scale)
    else:
        in_tier = zip((spec.capacity, spec.low.capacity), largest, strict=True)
        slots = int(sum(sum(capacity) * size for capacity, size in in_tier) * setting.scale)
    dense = sum(setting.manifest.dense_bytes or ())
    kv_cache = activations = expansion = 0
    if shape is not None:
        attention, kv = (WeightFormat.parse(word or "bf16") for word in (plan.weights.attention, plan.serve.kv_cache))
        dense = dense_bytes(shape, attention, STATED)
        kv_cache, activations = load_bytes(shape, setting.load, kv)
        expansion = expanded_bytes(shape, plan)
    return DeviceMemory(
        dense=dense,
        kv_cache=kv_cache,
        activations=activations,
        slots=slots,
        staging=spec.staging * sum(largest),
        expansion=expansion,
    )


def fit_capacity(
    plan: Plan,
    manifest: Manifest,
    machine: HardwareProfile,
    shape: ModelShape | None,
    load: Load,
    *,
    reshape: str | None = None,
) -> Plan:
    """`plan` with capacity `auto` replaced by the most slots per layer that fit beside all else; others as they are.

    One part in `RESERVE` of the device's memory stays free. Raises CapacityError where not one slot per layer fits.
    """
    if plan.capacity.unit != "auto":
        return plan
    least = plan.replace(cache=CachePlan(capacity="1/layer"), placement=PlacementPlan())
    one = Setting.of(manifest, least, None, shape, reshape=reshape, load=load)
    if not one.sizes:
        raise CapacityError(
            "capacity 'auto' needs the sizes of experts, which the trace does not say: give a model shape"
        )
    need, room = device_memory(one), machine.device.memory_bytes * (RESERVE - 1) // RESERVE
    slots = min(1 + (room - need.total) // need.slots, max(manifest.experts_per_layer))
    if slots < 1:
        raise CapacityError(
            f"capacity 'auto': one slot per layer and all else take {need.total / 2**30:.1f} GiB, and {machine.name} "
            f"has {room / 2**30:.1f} GiB of {machine.device.memory_bytes / 2**30:.1f} for them: store weights in fewer "
            "bits, or give a shorter context"
        )
    return plan.replace(cache=msgspec.structs.replace(plan.cache, capacity=f"{slots}/layer"))


def most_slots(
    fitted: Plan,
    manifest: Manifest,
    machine: HardwareProfile,
    shape: ModelShape | None,
    load: Load,
    *,
    reshape: str | None = None,
) -> int:
    """Slots of all layers together that fit where `fit_capacity` found so many for each: what is left over holds some
    more, fewer than one for each layer. The trace must have the layers of `shape`."""
    setting = Setting.of(manifest, fitted, None, shape, reshape=reshape, load=load)
    room = machine.device.memory_bytes * (RESERVE - 1) // RESERVE
    more = (room - device_memory(setting).total) // max(setting.sizes)
    return min(sum(setting.spec.capacity) + max(more, 0), sum(manifest.experts_per_layer))


def expanded_bytes(shape: ModelShape, plan: Plan) -> int:
    """One expert in 16 bits, where the engine expands it before use; other software reads it as it is stored."""
    expanded = any(word is not None and WeightFormat.parse(word).group for word in plan.formats)
    return 2 * shape.expert_params if expanded else 0


def host_bytes(setting: Setting) -> float:
    """Host memory for all experts, in all formats that the plan keeps, or the host cache where they lie on disk."""
    assert setting.costs is not None
    if setting.shape is not None:
        formats = (WeightFormat.parse(word or "bf16") for word in setting.plan.formats)
        experts = float(sum(experts_bytes(setting.shape, one) for one in formats))
    else:
        counts = setting.manifest.experts_per_layer * len(setting.tier_sizes)
        experts = float(sum(count * size for count, size in zip(counts, setting.sizes, strict=True)))
    cached = setting.costs.host_bytes
    return experts if cached < 0 else min(experts, setting.scale * cached)


def fits(setting: Setting) -> bool:
    """Whether the machine's memory holds what the plan needs of it."""
    assert setting.machine is not None
    return device_memory(setting).total <= setting.machine.device.memory_bytes
