"""Every layer of a model that routes text to experts: those on the experts seam, and those built otherwise.

Off the seam a block is a routed layer when it has a child named as routers are, with a weight row per choice, and
holds as many experts: a child named so, or matrices stacked one per expert. What the router chooses is read as
`choice.py` says.
"""

from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.choice import CALL, Choice, find_choice
from tracekit.recorder.gate import PROBE_TOKENS, Gate, Reader, find_gate, probe_rows, run_router, score_function
from tracekit.recorder.seam import (
    MAX_EXPERTS,
    ROUTER_NAMES,
    MoeLayer,
    is_experts,
    layer_number,
    model_dtype,
    seam_layer,
    serves_text,
    stated_score,
    stated_top_k,
    text_config,
    text_decoder,
)


class _Stack(NamedTuple):
    """Layers that text passes through, one after the other."""

    prefix: str  # of the names of its modules
    module: nn.Module
    names: list[str]  # of the experts on the seam and the blocks off it
    parts: int  # the most routed parts that one layer has
    depth: int  # layers, dense ones included


def routed_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers that text passes through, in the order in which they run; an encoder's before its decoder's.

    `model_layer` counts the layers of the encoder, then those of the decoder; where a layer has several routed
    parts (attention and feed-forward, say), it counts parts. ModelError when there is no such layer, or one cannot
    be understood.
    """
    found: list[MoeLayer] = []
    before = 0
    for number, stack in enumerate(_stacks(model)):
        modules = dict(stack.module.named_modules())
        names = stack.names if stack.parts == 1 else _running_order(stack.module, stack.names)
        seen: dict[int, int] = {}
        for name in names:
            place = layer_number(name)
            part = seen[place] = seen.get(place, -1) + 1
            index, full = len(found), stack.prefix + name
            if is_experts(modules[name]):
                layer = seam_layer(index, full, place, modules[name], modules[name.rpartition(".")[0]], model)
            else:
                layer = _other_layer(index, full, place, modules[name], model)
            found.append(replace(layer, model_layer=before + place * stack.parts + part, stack=number))
        before += stack.depth * stack.parts
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no experts that a router chooses token by token: only mixture-of-experts "
            "models can be recorded"
        )
    return found


def count_routed_layers(model: nn.Module) -> int:
    """How many layers route text to experts; 0 for a dense model. Needs no weights."""
    return sum(len(stack.names) for stack in _stacks(model))


def model_depth(model: nn.Module) -> int:
    """The number of layers that `model_layer` of the routed layers counts, dense ones included."""
    return sum(stack.depth * stack.parts for stack in _stacks(model))


def family(model: nn.Module) -> str:
    """The `model_type` of a transformers model; "" for any other."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model reads its prompt with an encoder of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder with which a model reads its prompt, where it has one of its own."""
    getter = getattr(model, "get_encoder", None)
    encoder: nn.Module | None = getter() if callable(getter) and is_encoder_decoder(model) else None
    return encoder


def _stacks(model: nn.Module) -> list[_Stack]:
    """What text passes through, in order."""
    found = [text_decoder(model)]
    encoder = encoder_of(model)
    if encoder is not None:
        found.insert(0, (next(name for name, module in model.named_modules() if module is encoder) + ".", encoder))
    stacks = []
    for prefix, module in found:
        names = list(_routed_names(module))
        numbers = [layer_number(name) for name in names]
        parts = max((numbers.count(number) for number in set(numbers)), default=1)
        stacks.append(_Stack(prefix, module, names, parts, _depth(module, names)))
    return stacks


def _depth(stack: nn.Module, names: list[str]) -> int:
    lists = [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in lists:
        if names and names[0].startswith(f"{name}."):
            return len(module)
    if names:
        raise ModelError(f"{type(stack).__name__} keeps its MoE layers in no list of layers")
    return max((len(module) for _, module in lists), default=0)


def _running_order(stack: nn.Module, names: list[str]) -> list[str]:
    """The names in the order in which they run, as the pass of one token shows; their own order where it cannot."""
    if any(parameter.is_meta for parameter in stack.parameters()):
        return names
    modules, seen = dict(stack.named_modules()), list[str]()
    handles = []
    for name in names:
        watched = modules[name] if is_experts(modules[name]) else _router(modules[name])
        assert watched is not None
        handles.append(watched.register_forward_pre_hook(lambda *_, name=name: seen.append(name)))
    device = next(stack.parameters()).device
    try:
        with torch.inference_mode():
            stack(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    except Exception:
        return names
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(seen)) if set(seen) == set(names) else names


def _routed_names(stack: nn.Module) -> Iterator[str]:
    """The names of experts on the seam and of blocks with a router off it, in the order of the modules."""
    for name, module in stack.named_modules():
        alone = not any(is_experts(child) for child in module.children())
        if (is_experts(module) or (alone and _is_block(module))) and serves_text(name):
            yield name


def _is_block(module: nn.Module) -> bool:
    router = _router(module)
    if router is None:
        return False
    choices = _choices(router)
    stacked = any(p.dim() == 3 and 1 < p.shape[0] == choices for p in _storage(module, router))
    return choices > 1 and (stacked or _experts(module) is not None)


def _router(block: nn.Module) -> nn.Module | None:
    return next((child for name, child in block.named_children() if name in ROUTER_NAMES), None)


def _experts(block: nn.Module) -> nn.Module | None:
    """The child that holds the experts."""
    return next((child for name, child in block.named_children() if name == "experts"), None)


def _projections(router: nn.Module) -> list[Tensor]:
    return [parameter for parameter in router.parameters() if parameter.dim() == 2]


def _choices(router: nn.Module) -> int:
    """Between how many experts a router chooses: the rows of its last matrix."""
    matrices = _projections(router)
    return int(matrices[-1].shape[0]) if matrices else 0


def _storage(block: nn.Module, router: nn.Module) -> list[nn.Parameter]:
    """The parameters that hold the experts' weights."""
    experts = _experts(block)
    if experts is not None:
        return list(experts.parameters())
    return [p for child in block.children() if child is not router for p in child.parameters()]


def _other_layer(index: int, name: str, number: int, block: nn.Module, model: nn.Module) -> MoeLayer:
    """A layer off the seam."""
    router, experts = _router(block), _experts(block)
    assert router is not None
    choices = _choices(router)
    count, params, size = _sizes(block, router, choices)
    if not 1 <= count <= min(choices, MAX_EXPERTS):
        raise ModelError(f"{name} has {count} experts; 1 to {min(choices, MAX_EXPERTS)} can be recorded")
    hidden, config = int(_projections(router)[-1].shape[1]), text_config(model)
    with torch.no_grad():
        rows = probe_rows(router, hidden, model_dtype(model))
        if rows is None:
            raise ModelError(f"{name} has no weights (meta device): load the model before it is recorded")
        choice, observed = _find_choice(block, router, rows, choices)
        top_k = stated_top_k(count, router, block) or observed or stated_top_k(count, config)
        if choice is None or not top_k:
            raise ModelError(f"{name}: what the router {type(router).__name__} chooses shows nowhere")
        gate, score = find_gate(
            router,
            block,
            count,
            hidden,
            model_dtype(model),
            width=choices,
            reader=_reader(choice, top_k, choices),
            chosen=choice.at,
        )
        if score == "unknown" and choice.where == "experts":
            score = _observed_score(block, rows, gate)
    return MoeLayer(
        index=index,
        model_layer=number,
        name=name,
        experts=block if experts is None else experts,
        router=router,
        block=block,
        num_experts=count,
        top_k=top_k,
        expert_params=params,
        expert_bytes=size,
        score_function=stated_score(config) if score == "unknown" else score,
        gate=gate,
        choice=choice,
    )


def _find_choice(block: nn.Module, router: nn.Module, rows: Tensor, choices: int) -> tuple[Choice | None, int]:
    """Where the choice shows, and top-k as a few rows show it; 0 where they do not."""
    experts = _experts(block)
    takes_pairs = experts is not None and len(signature(experts.forward).parameters) >= 3
    for _, output in run_router(router, block, rows):
        found = find_choice(output, PROBE_TOKENS, choices)
        if found is not None and (found[0].form != "pairs" or not takes_pairs):
            return found
    return (CALL, 0) if takes_pairs else (None, 0)


def _reader(choice: Choice, top_k: int, choices: int) -> Reader | None:
    return None if choice.where == "experts" else lambda output: choice.read(output, top_k, choices)


def _observed_score(block: nn.Module, rows: Tensor, gate: Gate) -> str:
    """The score function that the call of a block's experts shows for a few rows."""
    seen: list[tuple[Tensor, Tensor]] = []
    experts = _experts(block)
    assert experts is not None
    handle = experts.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1:3]))
    try:
        block.forward(rows.unsqueeze(0).clone())
        return score_function(gate.logits(rows).float(), *seen[0])
    except Exception:  # a block that takes more than hidden states
        return "unknown"
    finally:
        handle.remove()


def _sizes(block: nn.Module, router: nn.Module, choices: int) -> tuple[int, int, int]:
    """(experts that hold weights, parameters of one, bytes of one)."""
    experts = _experts(block)
    if isinstance(experts, nn.ModuleDict | nn.ModuleList):
        each = [held for child in experts.children() if (held := list(child.parameters()))]
        return len(each), sum(p.numel() for p in each[0]), sum(p.numel() * p.element_size() for p in each[0])
    count, params, size = choices, 0, 0
    for parameter in _storage(block, router):
        if parameter.dim() == 3:
            count = min(count, parameter.shape[0])
        rows = parameter.shape[0] if parameter.dim() == 3 else choices
        params += parameter.numel() // rows
        size += parameter.numel() // rows * parameter.element_size()
    return count, params, size
