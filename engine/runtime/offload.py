"""`offload(model, plan) -> model`: the experts of a model, or of the path of one, are served from host memory."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack, overload

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.decisions.misses import check_profile, served
from engine.decisions.spec import cache_spec as spec_of
from engine.hardware import HardwareProfile
from engine.plan.plan import Plan, PlanLike, as_plan
from engine.runtime.cpu_lane import CpuLane
from engine.runtime.experts import eager, grouped
from engine.runtime.experts.launching import check_kernels
from engine.runtime.experts.visits import GroupedVisits
from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.thread_link import EmulatedLink, ThreadLink
from engine.runtime.memory import expert_bytes, fit, fit_checkpoint, footprint, free_bytes
from engine.runtime.offload_state import STATE, OffloadState, check_policies
from engine.runtime.pool import Pool, SlotPool, TieredPool
from engine.runtime.rewriting import rewriting_of
from engine.runtime.storage.attention import attention_bytes, check_attention, quantise_attention
from engine.runtime.storage.disk_store import SlabExperts, load_slabs, open_slabs, write_slabs
from engine.runtime.storage.host_store import HostStore, check_storable
from engine.runtime.storage.origin import LoadedExperts, Origin, Say, accumulations
from engine.runtime.storage.random_weights import RandomExperts
from engine.runtime.storage.sharded_loading import opened_checkpoint
from engine.runtime.storage.slab_layout import layout_of
from engine.runtime.storage.store import Store
from engine.runtime.storage.tiered_store import TieredStore
from policies.cache_spec import CacheSpec, low_spec, slots_of
from tracekit.errors import HardwareError, ModelError, PlanError
from tracekit.recorder.seam import MoeLayer, moe_layers

Model = TypeVar("Model", bound=PreTrainedModel)


class Options(TypedDict, total=False):
    """The options of `offload`, which says what they mean."""

    device: str | torch.device | None
    emulate_link: EmulatedLink | None
    cache_spec: CacheSpec | None
    host: str
    slabs: str | Path | None
    memory: int | None
    dtype: str
    random_experts: int | None
    hardware: HardwareProfile | None
    say: Say


@overload
def offload(model: Model, plan: PlanLike, **options: Unpack[Options]) -> Model: ...


@overload
def offload(model: str | Path, plan: PlanLike, **options: Unpack[Options]) -> PreTrainedModel: ...


def offload(
    model: PreTrainedModel | str | Path,
    plan: PlanLike,
    *,
    device: str | torch.device | None = None,
    emulate_link: EmulatedLink | None = None,
    cache_spec: CacheSpec | None = None,
    host: str = "memory",
    slabs: str | Path | None = None,
    memory: int | None = None,
    dtype: str = "auto",
    random_experts: int | None = None,
    hardware: HardwareProfile | None = None,
    say: Say = lambda text: None,
) -> PreTrainedModel:
    """Serve the experts of `model` from host memory by `plan`; everything else lives on `device`.

    Given a checkpoint, a directory or a hub name in the local cache, it is loaded shard by shard: what is no expert
    goes to the device, each expert to its slab, and nothing is in memory twice. Given a model, its experts are moved
    out of it, and it is what is returned.

    The model has its type, its `generate` and, bit for bit, its output (see `OffloadState` on padded
    batches). It is for inference only from here on: no gradients, no saving. `offloaded(model)` is its
    state, whose `close()` ends it.

    Args:
        model: a checkpoint, or a transformers MoE model, loaded without quantisation, preferably on the CPU.
        plan: a plan, its tables, or the path of its file.
        device: where the slots and all other parameters live; by default where a model is, "auto" for a checkpoint.
        emulate_link: slow copies down to a link that this machine does not have; CPU only.
        host: where experts lie: in "memory", or on "disk", in the directory `slabs`.
        slabs: a directory of experts as the plan stores them. It is written if it is not there yet; if it is, nothing
            is converted again, and experts are read from there, into memory or slot by slot.
        random_experts: a seed; experts are filled with random numbers, and the model's own need no storage.
        memory: bytes of device memory that slots and all other weights may take; None is what is free there. A plan
            that needs more is refused, and capacity `auto` is as much as fits.
        hardware: how fast this machine is, which some plans divide misses by (`miss.where`).
        cache_spec: decide by this instead of by what the plan says of it.
        dtype: of a checkpoint: auto (as stored), float32, bfloat16 or float16.
        say: is called with one line when a checkpoint cannot be loaded shard by shard and is loaded whole.

    Raises PlanError (a plan that cannot run here), CapacityError, PolicyError, HardwareError or ModelError.
    Experts are moved, or read, only after everything that can be checked beforehand has been checked.
    """
    if getattr(model, STATE, None) is not None:
        raise ModelError("the model is already offloaded; load it again to offload it by another plan")
    plan = as_plan(plan)
    with_lane = plan.miss.where != "copy"
    if with_lane and plan.compute.grouped:
        raise PlanError(
            f'miss.where = "{plan.miss.where}" needs kernels = "eager" in the engine: the host takes single experts'
        )
    check_profile(plan.miss, hardware)
    if plan.precision is not None:
        _check_tiers(plan, host, slabs)
    target = _device(model, device)
    if plan.compute.grouped:
        check_kernels(target)
    if emulate_link is not None and target.type != "cpu":
        raise HardwareError(f"a link can be emulated on the CPU only, not on {target}")
    path = _slabs(host, slabs)
    if random_experts is not None and (path is not None or isinstance(model, str | Path)):
        raise PlanError("random experts lie in memory, in a model's shapes: without slabs and checkpoint")
    quantising = random_experts is None and (path is None or not path.exists())
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as files:
        origin: Origin | None = None if random_experts is None else RandomExperts(random_experts)
        if isinstance(model, str | Path):
            if cache_spec is None:  # before anything is read
                plan = fit_checkpoint(
                    model,
                    plan,
                    dtype=dtype,
                    device=str(target),
                    limit=memory,
                    on_disk=host == "disk",
                    quantising=quantising,
                )
            if path is not None and path.exists():
                loaded = load_slabs(model, path, dtype)
            else:
                loaded, origin = files.enter_context(opened_checkpoint(model, dtype, target, say))
        else:
            loaded = model
            if cache_spec is None:
                plan = _fitted(loaded, plan, target, memory, on_disk=host == "disk", quantising=quantising)
        layers, formats = moe_layers(loaded), (plan.weights.experts, plan.weights.attention)
        if path is None or not path.exists():
            for layer in layers if random_experts is None else ():
                for word in plan.formats:
                    check_storable(layer, word, loaded=origin is None)
            check_attention(loaded, formats[1])
        sizes = expert_bytes(layers, plan.formats)
        params, stored = [layer.expert_params for layer in layers], plan.weights.experts
        misses = served(plan.miss, hardware, sizes[: len(layers)], params, stored, grouped=plan.compute.grouped)
        spec = cache_spec or spec_of([layer.num_experts for layer in layers], sizes, plan, misses)
        check_policies(spec)
        rewriting_of(plan.routing, spec, layers)
        eager.register()
        grouped.register()
        # Before anything moves: too many slots for the device is the likeliest mistake.
        pool = _pool(layers, plan, spec, target)
        store, accumulate = _stored(loaded, layers, plan, origin or LoadedExperts(), path, host, target)
        if formats[1] is not None and not attention_bytes(loaded):
            quantise_attention(loaded, formats[1], target)
        _move_rest(loaded, target)
        # Looked up again: what is known of a router is on the device where it now is.
        layers = moe_layers(loaded)
        link = CudaLink(target) if target.type == "cuda" else ThreadLink(emulate_link)
        lane = CpuLane(layers, store) if with_lane else None
        visits = None
        if plan.compute.grouped and isinstance(pool, SlotPool):
            visits = GroupedVisits(layers, store.layouts, pool, fused=plan.compute.experts == "fused")
        state = OffloadState(
            loaded,
            layers,
            spec,
            store,
            pool,
            link,
            accumulate,
            emulate_link,
            lane,
            visits,
            rewriting_of(plan.routing, spec, layers),
        )
    setattr(loaded, STATE, state)
    return loaded


def _fitted(
    model: nn.Module, plan: Plan, target: torch.device, memory: int | None, *, on_disk: bool, quantising: bool
) -> Plan:
    """The plan, if it fits; its capacity chosen if it is `auto`. On the CPU free memory is no hard limit."""
    if memory is not None:
        return fit(model, plan, memory, f"the given memory on {target}", device=target, quantising=quantising)
    if plan.capacity.unit != "auto":
        return plan
    here = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu")).type == target.type
    need = footprint(model, plan)
    # Where the model is already, its rest need not be found room for; where experts stay, they need theirs.
    room = free_bytes(target) + (need.rest if here else 0)
    room -= need.host if target.type == "cpu" and not on_disk else 0
    return fit(model, plan, room, str(target), device=target, quantising=quantising)


def _check_tiers(plan: Plan, host: str, slabs: str | Path | None) -> None:
    """Raise PlanError for what the engine does not do yet with experts in two formats."""
    if plan.compute.grouped:
        raise PlanError(
            'precision tiers need compute.kernels = "eager" in the engine: its grouped kernels read one format'
        )
    if host != "memory" or slabs is not None:
        raise PlanError("precision tiers keep both copies in host memory: leave --host disk and --slabs out")


def _slabs(host: str, slabs: str | Path | None) -> Path | None:
    """The directory of slabs, or None for experts in memory. Raises PlanError."""
    if host not in ("memory", "disk"):
        raise PlanError(f"experts lie in 'memory' or on 'disk', not in {host!r}")
    if host == "disk" and slabs is None:
        raise PlanError("experts on disk need a directory for their slabs: --slabs DIR")
    return None if slabs is None else Path(slabs)


def _pool(layers: Sequence[MoeLayer], plan: Plan, spec: CacheSpec, target: torch.device) -> Pool:
    """The device's slots; where experts have two copies, of two sizes."""
    largest = [max(layout_of(layer.experts, word).bytes for layer in layers) for word in plan.formats]
    if spec.low is None:
        return SlotPool(slots_of(spec), largest[0], target)
    low = slots_of(low_spec(spec, spec.low))
    return TieredPool(SlotPool(slots_of(spec) - low, largest[0], target), SlotPool(low, largest[1], target))


def _stored(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    plan: Plan,
    origin: Origin,
    path: Path | None,
    host: str,
    target: torch.device,
) -> tuple[Store, list[str]]:
    """The experts where they are to lie, and how those of each layer add up."""
    formats = (plan.weights.experts, plan.weights.attention)
    if path is None:
        accumulate = accumulations(layers, origin)
        if plan.precision is not None:
            return TieredStore(layers, plan.formats, target, origin), accumulate
        return HostStore(layers, formats[0], device=target, origin=origin), accumulate
    if not path.exists():
        write_slabs(path, model, layers, origin, formats, target)
    disk = open_slabs(path, model, layers, formats)
    accumulate = [layer.accumulate for layer in disk.index.layers]
    if host == "disk":
        return disk, accumulate
    with closing(disk):
        return HostStore(layers, formats[0], device=target, origin=SlabExperts(disk)), accumulate


def _move_rest(model: nn.Module, target: torch.device) -> None:
    """Move all but the experts: `model.to` fails on parameters that have shapes and no storage."""
    try:
        model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(target))  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as error:
        raise HardwareError(f"{target} cannot hold the model beside its experts: give them less capacity") from error


def _device(model: nn.Module | str | Path, device: str | torch.device | None) -> torch.device:
    if device is None and isinstance(model, nn.Module):
        return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
