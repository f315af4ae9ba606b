"""Offloading a model: `offload(model, plan) -> model`, the same object served from host memory."""

from typing import TypeVar

import torch
from torch import nn

from engine.decisions import cache_spec as spec_of
from engine.plan import Plan
from engine.runtime.cuda_link import CudaLink
from engine.runtime.experts import accumulation, register
from engine.runtime.pool import SlotPool
from engine.runtime.state import STATE, OffloadState, check_policies
from engine.runtime.store import ExpertStore, SlabLayout, check_storable, stored_dtype
from engine.runtime.thread_link import EmulatedLink, ThreadLink
from policies.cache import CacheSpec
from tracekit.errors import HardwareError, ModelError, PlanError
from tracekit.recorder.seam import moe_layers

Model = TypeVar("Model", bound=nn.Module)


def offload(
    model: Model,
    plan: Plan,
    *,
    device: str | torch.device | None = None,
    emulate_link: EmulatedLink | None = None,
    cache_spec: CacheSpec | None = None,
) -> Model:
    """Move the experts of `model` to host memory and serve them by `plan`; everything else moves to `device`.

    The model keeps its type, its `generate` and, bit for bit, its output (see `OffloadState` on padded
    batches). It is for inference only from here on: no gradients, no saving. `offloaded(model)` tells what
    happens inside, and its `close()` ends it.

    Args:
        model: a transformers MoE model, loaded without quantisation, preferably on the CPU.
        device: where the slots and all other parameters live; by default where the model is.
        emulate_link: slow copies down to a link that this machine does not have; CPU only.
        cache_spec: decide by this instead of by the plan's cache, eviction and prefetch tables.

    Raises PlanError (a plan that cannot run here), CapacityError, PolicyError, HardwareError or ModelError.
    Experts are moved only after everything that can be checked beforehand has been checked.
    """
    if getattr(model, STATE, None) is not None:
        raise ModelError("the model is already offloaded; load it again to offload it by another plan")
    target = _device(model, device)
    if emulate_link is not None and target.type != "cpu":
        raise HardwareError(f"a link can be emulated on the CPU only, not on {target}")
    attention = plan.weights.attention
    if attention is not None and stored_dtype(attention) is not getattr(model, "dtype", None):
        raise PlanError(f"the plan stores attention in {attention} but the model is not loaded so")
    with torch.inference_mode(False), torch.no_grad():
        layers = moe_layers(model)
        for layer in layers:
            check_storable(layer, plan.weights.experts)
        spec = cache_spec or spec_of([la.num_experts for la in layers], [la.expert_bytes for la in layers], plan)
        slots = check_policies(spec).slots
        families: dict[type[nn.Module], str] = {}
        for layer in layers:
            kind = type(layer.experts)
            if kind not in families:
                families[kind] = accumulation(layer.experts)
        register()
        # Before anything moves: too many slots for the device is the likeliest mistake.
        pool = SlotPool(slots, max(SlabLayout.of(layer.experts).bytes for layer in layers), target)
        store = ExpertStore(layers, plan.weights.experts)
        model.requires_grad_(False)
        _move_rest(model, target)
        if target.type == "cuda":
            store.pin()
        # Looked up again: what a gate knows of its router is where the router now is.
        layers = moe_layers(model)
        accumulate = [families[type(layer.experts)] for layer in layers]
        link = CudaLink(target) if target.type == "cuda" else ThreadLink(emulate_link)
        state = OffloadState(model, layers, spec, store, pool, link, accumulate, emulate_link)
    setattr(model, STATE, state)
    return model


def offloaded(model: nn.Module) -> OffloadState:
    """The state of an offloaded model. ModelError for any other."""
    state = getattr(model, STATE, None)
    if not isinstance(state, OffloadState):
        raise ModelError(f"this {type(model).__name__} is not offloaded: call offload(model, plan) first")
    return state


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
