"""Offloading a model: `offload(model, plan) -> model`, the same object served from host memory."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from engine.decisions import cache_spec as spec_of
from engine.hardware import HardwareProfile
from engine.plan import Plan
from engine.runtime.attention import attention_bytes, check_attention, quantise_attention
from engine.runtime.cpu_lane import CpuLane, check_lane
from engine.runtime.cuda_link import CudaLink
from engine.runtime.disk_store import DiskStore, open_slabs, write_slabs
from engine.runtime.experts import accumulation, register
from engine.runtime.forced import random_slabs
from engine.runtime.layout import layout_of
from engine.runtime.measure import free_bytes
from engine.runtime.memory import fit, footprint
from engine.runtime.pool import SlotPool
from engine.runtime.state import STATE, OffloadState, check_policies
from engine.runtime.store import ExpertStore, check_storable
from engine.runtime.thread_link import EmulatedLink, ThreadLink
from engine.weights import WeightFormat
from policies.cache import CacheSpec
from tracekit.errors import HardwareError, ModelError, PlanError
from tracekit.recorder.seam import MoeLayer, moe_layers

Model = TypeVar("Model", bound=nn.Module)


def offload(
    model: Model,
    plan: Plan,
    *,
    device: str | torch.device | None = None,
    emulate_link: EmulatedLink | None = None,
    cache_spec: CacheSpec | None = None,
    host: str = "memory",
    slabs: str | Path | None = None,
    memory: int | None = None,
    random_experts: int | None = None,
    hardware: HardwareProfile | None = None,
) -> Model:
    """Move the experts of `model` to host memory and serve them by `plan`; everything else moves to `device`.

    The model keeps its type, its `generate` and, bit for bit, its output (see `OffloadState` on padded
    batches). It is for inference only from here on: no gradients, no saving. `offloaded(model)` tells what
    happens inside, and its `close()` ends it.

    Args:
        model: a transformers MoE model, loaded without quantisation, preferably on the CPU.
        device: where the slots and all other parameters live; by default where the model is.
        emulate_link: slow copies down to a link that this machine does not have; CPU only.
        host: where experts lie: "memory", or "disk", in the directory `slabs`. That is written if it is not there
            yet; if it is, experts are neither loaded nor stored again, and need not have been (`load_slabs`).
        random_experts: a seed; experts are filled with random numbers, and the model's own need no storage.
        memory: bytes of device memory that slots and all other weights may take; None is what is free there. A plan
            that needs more is refused, and capacity `auto` is as much as fits.
        hardware: how fast this machine is, which a plan with `compute.cpu_experts = "auto"` weighs.
        cache_spec: decide by this instead of by the plan's cache, eviction and prefetch tables.

    Raises PlanError (a plan that cannot run here), CapacityError, PolicyError, HardwareError or ModelError.
    Experts are moved only after everything that can be checked beforehand has been checked.
    """
    if getattr(model, STATE, None) is not None:
        raise ModelError("the model is already offloaded; load it again to offload it by another plan")
    with_lane = plan.compute.cpu_experts != "never"
    if with_lane:
        check_lane(hardware)
    target = _device(model, device)
    if emulate_link is not None and target.type != "cpu":
        raise HardwareError(f"a link can be emulated on the CPU only, not on {target}")
    path = _slabs(host, slabs)
    formats = (plan.weights.experts, plan.weights.attention)
    with torch.inference_mode(False), torch.no_grad():
        layers = moe_layers(model)
        written = path is not None and path.exists()
        if random_experts is not None:
            if path is not None:
                raise PlanError("random experts lie in memory, not on disk")
            check_attention(model, plan.weights.attention)
        elif not written:
            for layer in layers:
                check_storable(layer, plan.weights.experts)
            check_attention(model, plan.weights.attention)
        if cache_spec is None:
            plan = _fitted(model, plan, target, memory, on_disk=path is not None)
        sizes = expert_bytes(layers, plan.weights.experts)
        spec = cache_spec or spec_of([layer.num_experts for layer in layers], sizes, plan)
        slots = check_policies(spec).slots
        store: ExpertStore | DiskStore
        if path is not None and written:
            store = open_slabs(path, model, layers, formats)
            accumulate = [layer.accumulate for layer in store.index.layers]
        elif random_experts is not None:
            accumulate = ["hidden"] * len(layers)
        else:
            accumulate = _accumulations(layers)
        register()
        # Before anything moves: too many slots for the device is the likeliest mistake.
        pool = SlotPool(slots, max(layout_of(layer.experts, formats[0]).bytes for layer in layers), target)
        if path is None:
            fill = None if random_experts is None else partial(random_slabs, seed=random_experts)
            store = ExpertStore(layers, formats[0], device=target, fill=fill)
        elif not written:
            write_slabs(path, model, layers, accumulate, formats, target)
            store = open_slabs(path, model, layers, formats)
        if formats[1] is not None and not attention_bytes(model):
            quantise_attention(model, formats[1], target)
        _move_rest(model, target)
        if target.type == "cuda":
            store.pin()
        # Looked up again: what a gate knows of its router is where the router now is.
        layers = moe_layers(model)
        link = CudaLink(target) if target.type == "cuda" else ThreadLink(emulate_link)
        lane = CpuLane(check_lane(hardware), layers, store) if with_lane else None
        state = OffloadState(model, layers, spec, store, pool, link, accumulate, emulate_link, lane)
    setattr(model, STATE, state)
    return model


def offloaded(model: nn.Module) -> OffloadState:
    """The state of an offloaded model. ModelError for any other."""
    state = getattr(model, STATE, None)
    if not isinstance(state, OffloadState):
        raise ModelError(f"this {type(model).__name__} is not offloaded: call offload(model, plan) first")
    return state


def _fitted(model: nn.Module, plan: Plan, target: torch.device, memory: int | None, *, on_disk: bool) -> Plan:
    """The plan, if it fits; its capacity chosen if it is `auto`. On the CPU free memory is no hard limit."""
    if memory is not None:
        return fit(model, plan, memory, f"the given memory on {target}")
    if plan.capacity.unit != "auto":
        return plan
    here = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu")).type == target.type
    need = footprint(model, plan)
    # Where the model is already, its rest need not be found room for; where experts stay, they need theirs.
    room = free_bytes(target) + (need.rest if here else 0)
    return fit(model, plan, room - (need.host if target.type == "cpu" and not on_disk else 0), str(target))


def _slabs(host: str, slabs: str | Path | None) -> Path | None:
    """The directory of slabs, or None for experts in memory. Raises PlanError."""
    if host not in ("memory", "disk"):
        raise PlanError(f"experts lie in 'memory' or on 'disk', not in {host!r}")
    if host == "disk" and slabs is None:
        raise PlanError("experts on disk need a directory for their slabs: --slabs DIR")
    if host == "memory" and slabs is not None:
        raise PlanError("a directory of slabs is for experts on disk: give --host disk")
    return None if slabs is None else Path(slabs)


def _accumulations(layers: Sequence[MoeLayer]) -> list[str]:
    """How the experts of each layer add up."""
    families: dict[type[nn.Module], str] = {}
    for layer in layers:
        if type(layer.experts) not in families:
            families[type(layer.experts)] = accumulation(layer.experts)
    return [families[type(layer.experts)] for layer in layers]


def expert_bytes(layers: Sequence[MoeLayer], weights: str | None) -> list[int]:
    """Bytes of one expert of each layer as a weight format stores it, which is what capacities in bytes count."""
    if weights is None or not WeightFormat.parse(weights).quantised:
        return [layer.expert_bytes for layer in layers]
    return [layout_of(layer.experts, weights).bytes for layer in layers]


def _move_rest(model: nn.Module, target: torch.device) -> None:
    """Move all but the experts: `model.to` would stumble over parameters that have shapes and no storage."""
    try:
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(target))  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as error:
        raise HardwareError(f"{target} cannot hold the model beside its experts: give them less capacity") from error


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is None:
        return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise HardwareError(f"unknown device {str(device)!r}: give cpu or cuda") from error
    if target.type not in ("cpu", "cuda"):
        raise HardwareError(f"the engine runs on cpu and cuda, not on {target.type}")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise HardwareError("no CUDA device is available; give --device cpu")
    if target.type == "cuda" and target.index is None:
        target = torch.device("cuda", torch.cuda.current_device())
    return target
