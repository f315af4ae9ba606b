"""The memory that a plan takes, known before any weight is loaded, and the largest capacity that fits."""

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from engine.decisions.spec import cache_spec
from engine.plan.misses import MissPlan
from engine.plan.plan import Plan
from engine.plan.weights import WeightFormat
from engine.runtime.storage.attention import attention_format_bytes, projections
from engine.runtime.storage.host_store import stored_dtype
from engine.runtime.storage.slab_layout import (
    SLOT_ALIGNMENT,
    Layout,
    QuantisedLayout,
    aligned,
    expert_parameters,
    layout_of,
)
from engine.runtime.storage.working_memory import expansion_bytes, matrix_expansion_bytes, quantising_bytes
from engine.shapes.config import shape_of_config
from engine.shapes.load import Load, load_bytes
from policies.cache_spec import CacheSpec, low_spec
from policies.cache_spec import slots_of as cache_slots
from policies.tiered_cache import cache_of
from tracekit.errors import CapacityError, HardwareError, PlanError
from tracekit.recorder.generation import default_chunk
from tracekit.recorder.seam import MoeLayer, moe_layers

CPU = torch.device("cpu")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 1 << 60  # a system that does not tell refuses nothing
RESERVE = 10
"""With capacity `auto`, one part in so many stays free: the key-value cache and what a step computes with."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that an offloaded model takes: `slot` for one expert on the device, `rest` for all else that stays there,
    `working` to expand, or before that to quantise, one matrix or expert; `serving` for the key-value cache and the
    activations of what the plan serves, 0 where it does not say; `host` for all experts. Slots of `staging` come on top
    of the cache's. Where experts have two copies slots are those of the high ones, and `low` is what the others take.
    """

    layers: int
    experts: int
    slot: int
    rest: int
    working: int
    serving: int
    host: int
    staging: int
    low: int = 0

    def device(self, slots: int) -> int:
        """Bytes on the device with so many slots in all."""
        return slots * self.slot + self.always

    @property
    def always(self) -> int:
        """Bytes beside the slots."""
        return self.rest + self.working + self.serving + self.low

    def largest(self, room: int) -> str:
        """The largest capacity whose slots fit into `room` bytes of device memory, as a plan says it; "" if none."""
        slots = (room - self.always) // self.slot - self.staging
        if slots >= self.layers:
            return f"{min(slots // self.layers, self.experts)}/layer"
        return str(slots) if slots > 0 else ""


def footprint(model: nn.Module, plan: Plan, *, quantising: bool = False, device: torch.device = CPU) -> Footprint:
    """The footprint of `model` (which may be on the meta device) under `plan` on `device`, whatever its capacity.

    `quantising`: experts are quantised on the device, beside the slots, and not read as they are stored.
    """
    layers = moe_layers(model)
    tiers = [[layout_of(layer.experts, word) for layer in layers] for word in plan.formats]
    layouts = [layout for tier in tiers for layout in tier]
    slot, *lows = (aligned(max(layout.bytes for layout in tier), SLOT_ALIGNMENT) for tier in tiers)
    spec = _spec(layers, plan) if lows else None
    served = {id(p) for layer in layers for p in expert_parameters(layer.experts).values()}
    rest = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in served)
    if plan.weights.attention is not None:
        plain, stored = attention_format_bytes(model, plan.weights.attention)
        rest += stored - plain
    return Footprint(
        layers=len(layers),
        experts=max(layer.num_experts for layer in layers),
        slot=slot,
        rest=rest,
        working=max(
            *(0 if plan.compute.grouped else expansion_bytes(layout, device) for layout in set(layouts)),
            _attention_working(model, plan.weights.attention, device),
            *(_quantising(tier) if quantising else 0 for tier in tiers),
        ),
        serving=_serving(model, plan),
        host=sum(
            layer.num_experts * aligned(layout.bytes)
            for tier in tiers
            for layer, layout in zip(layers, tier, strict=True)
        ),
        staging=max(plan.prefetch.staging, 1),
        low=0 if spec is None or spec.low is None else cache_slots(low_spec(spec, spec.low)) * lows[0],
    )


def _serving(model: nn.Module, plan: Plan) -> int:
    """What the sequences of the plan's `serve` take. PlanError where the engine cannot serve them so."""
    serve = plan.serve
    dtype = getattr(model, "dtype", torch.float32)
    kept = next((word for word in ("fp32", "fp16", "bf16") if stored_dtype(word, dtype) is dtype), "fp32")
    if serve.kv_cache not in (None, kept):
        raise PlanError(
            f"serve.kv_cache = {serve.kv_cache!r}, but the engine keeps keys and values in the model's type, {kept}: "
            "leave it out, or load the model so"
        )
    if serve.context is None:
        return 0
    config: PreTrainedConfig = model.config  # type: ignore[assignment]
    shape = shape_of_config(config.to_dict(), f"serve.context: {config.model_type}")
    batch = serve.batch or 1
    tokens = min(default_chunk(model) or serve.context, serve.context) * batch
    load = Load(serve.context, batch, tokens, serve.context)
    return sum(load_bytes(shape, load, WeightFormat.parse(kept), dtype.itemsize))


def _quantising(layouts: Sequence[Layout]) -> int:
    """What quantising the largest matrix of any expert takes."""
    quantised = [layout for layout in layouts if isinstance(layout, QuantisedLayout)]
    shapes = [(matrix.rows, matrix.cols) for layout in set(quantised) for matrix in layout.matrices]
    return quantising_bytes(shapes, quantised[0].format, quantised[0].dtype) if shapes else 0


def _attention_working(model: nn.Module, word: str | None, device: torch.device) -> int:
    """What expanding the largest projection of the attention takes."""
    if word is None or not WeightFormat.parse(word).quantised:
        return 0
    parsed = WeightFormat.parse(word)
    shapes = {(*linear.weight.shape, linear.weight.dtype) for _, _, linear in projections(model)}
    return max((matrix_expansion_bytes(rows, cols, parsed, dtype, device) for rows, cols, dtype in shapes), default=0)


def fit(model: nn.Module, plan: Plan, room: int, where: str, *, device: torch.device, quantising: bool = False) -> Plan:
    """`plan`, its capacity chosen if it is `auto`, for a device with `room` bytes of memory free.

    Raises CapacityError, naming the largest capacity that would fit, when it does not.
    """
    need = footprint(model, plan, quantising=quantising, device=device)
    if plan.capacity.unit == "auto":
        capacity = need.largest(room - room // RESERVE)
        if not capacity:
            raise CapacityError(
                f"{where} has {room} bytes for the model: not even {need.staging} staging buffers of {need.slot} bytes "
                f"fit beside the {need.always} bytes that always stay there and a reserve of 1/{RESERVE}"
            )
        return plan.replace(cache=msgspec.structs.replace(plan.cache, capacity=capacity))
    slots = slots_of(model, plan)
    if need.device(slots) > room:
        largest = need.largest(room)
        advice = f"the largest that fits is {largest}" if largest else "none fits: store weights in fewer bits"
        raise CapacityError(
            f"capacity {plan.cache.capacity!r} needs {need.device(slots)} bytes ({slots} slots of {need.slot} and "
            f"{need.always} for the rest) but {where} has {room}: {advice}"
        )
    return plan


def slots_of(model: nn.Module, plan: Plan) -> int:
    """Slots on the device, staging buffers included; of the high copies alone, where experts have two."""
    spec = _spec(moe_layers(model), plan.replace(miss=MissPlan()))  # which changes no slots, and asks for no machine
    cache_of(spec)  # raises what would keep it from deciding
    return cache_slots(replace(spec, low=None))


def _spec(layers: Sequence[MoeLayer], plan: Plan) -> CacheSpec:
    return cache_spec([layer.num_experts for layer in layers], expert_bytes(layers, plan.formats), plan)


def expert_bytes(layers: Sequence[MoeLayer], formats: Sequence[str | None]) -> list[int]:
    """Bytes of one expert of each layer as a weight format stores it, which is what capacities in bytes count.

    Of several formats one after the other.
    """
    return [
        layer.expert_bytes
        if weights is None or not WeightFormat.parse(weights).quantised
        else layout_of(layer.experts, weights).bytes
        for weights in formats
        for layer in layers
    ]


def fit_checkpoint(
    path_or_id: str | Path,
    plan: Plan,
    *,
    dtype: str,
    device: str,
    limit: int | None,
    on_disk: bool = False,
    quantising: bool = False,
) -> Plan:
    """`fit` for a checkpoint that is not loaded: only its configuration is read.

    `limit` is the device memory to use; None is what is free, on the CPU less what the experts themselves take there.
    HardwareError, too, when the host cannot hold the experts and, where it is the device, all else.
    """
    from tracekit.recorder.models import parse_device

    place = parse_device(device)
    model = _empty(path_or_id, dtype)
    where = str(place) if limit is None else f"--memory on {place}"
    if limit is not None or place.type != "cpu" or plan.capacity.unit == "auto":
        if limit is None:
            limit = free_bytes(place)
            if place.type == "cpu" and not on_disk:
                limit -= footprint(model, plan).host
        plan = fit(model, plan, limit, where, device=place, quantising=quantising)
    need = footprint(model, plan, quantising=quantising, device=place)
    here = need.device(slots_of(model, plan)) if place.type == "cpu" else 0
    check_host(
        (0 if on_disk else need.host) + here,
        f"{path_or_id} under this plan",
        "store weights in fewer bits, or leave experts on disk (--host disk --slabs DIR)",
    )
    return plan


def check_unoffloaded(path_or_id: str | Path, dtype: str) -> None:
    """Raise HardwareError unless the host can hold a checkpoint as it is, before it is read."""
    model = _empty(path_or_id, dtype)
    # Each once: parameters may be tied.
    tensors = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    check_host(
        sum(tensors.values()),
        f"{path_or_id} without offloading, whose tokens are what those of the engine must equal,",
        "compare decisions and time alone, by --routing T.trace --random-weights",
    )


def check_host(size: int, what: str, advice: str) -> None:
    """Raise HardwareError unless so many bytes of host memory are free."""
    room = host_bytes()
    if size > room:
        raise HardwareError(f"{what} needs {size} bytes of host memory, and {room} are free: {advice}")


def host_bytes() -> int:
    """Host memory that is free now, swap included; in a container, what its limit leaves. `UNKNOWN` elsewhere."""
    if not Path("/proc/meminfo").exists():
        return UNKNOWN
    room = meminfo("MemAvailable") + meminfo("SwapFree")
    try:
        most, taken = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = (CGROUP / "memory.stat").read_text().split()
        if most != "max":
            reclaimable = int(cache[cache.index("inactive_file") + 1])
            room = min(room, int(most) - int(taken) + reclaimable)
    except (OSError, ValueError):
        pass  # no such limit
    return room


def _empty(path_or_id: str | Path, dtype: str) -> PreTrainedModel:
    """The model of a checkpoint's configuration, on the meta device."""
    from tracekit.recorder.models import check_experts, empty_model, find_model, load_config, parse_dtype

    directory = find_model(path_or_id)
    config = load_config(directory)
    check_experts(config, directory)
    return empty_model(config, directory, dtype_of(config, parse_dtype(dtype)))


def dtype_of(config: PreTrainedConfig, asked: torch.dtype | str) -> torch.dtype:
    """The type of a model's weights: as asked for, or, where that is "auto", as its configuration says."""
    stated = getattr(config, "dtype", None) if isinstance(asked, str) else asked
    stated = getattr(torch, stated, None) if isinstance(stated, str) else stated
    return stated if isinstance(stated, torch.dtype) else torch.float32


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return meminfo("MemAvailable")


def meminfo(field: str) -> int:
    """A line of /proc/meminfo, in bytes; the smallest memory there is where nothing says."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 1 << 30
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in text.splitlines()}
    return int(values[field][0]) * 1024 if field in values else 1 << 30


def release() -> None:
    """Give back what models of which nobody knows any more hold: they refer to themselves, through their hooks."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    # glibc keeps what was freed in pieces of up to 32 MB, as many as were in use at a time. Elsewhere there is no such
    # call.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
