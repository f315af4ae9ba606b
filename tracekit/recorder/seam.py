"""The experts seam: where the MoE layers of any transformers model are, and what each consists of.

transformers (v5) serves the experts of every MoE family through one call, `experts(hidden_states,
top_k_index, top_k_weights)`, dispatched by `use_experts_implementation`. Modules are recognised by that seam
and by their shapes, never by the name of a family.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.gate import Gate, find_gate

MAX_EXPERTS = 65534  # ids are stored as u16 and 65535 marks an unused slot

_SEAM_ATTRIBUTES = ("num_experts", "has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")
_ROUTER_NAMES = ("router", "gate")
_TOP_K_NAMES = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
)
_SCORE_NAMES = (
    "scoring_func",
    "score_function",
    "score_func",
    "expert_selection_fn",
    "moe_router_activation_func",
)


@dataclass(frozen=True, slots=True, eq=False)
class MoeLayer:
    """One MoE layer of a loaded model.

    `index` counts MoE layers, `model_layer` decoder layers; `name` is the experts' qualified name.
    `expert_params` and `expert_bytes` are of one expert, as the model holds it. `score_function` turns logits
    into weights: "softmax", "sigmoid" or "unknown".
    """

    index: int
    model_layer: int
    name: str
    experts: nn.Module
    router: nn.Module
    block: nn.Module
    num_experts: int
    top_k: int
    expert_params: int
    expert_bytes: int
    score_function: str
    gate: Gate


def is_experts(module: nn.Module) -> bool:
    """Whether `module` serves experts through the seam."""
    return all(hasattr(module, name) for name in _SEAM_ATTRIBUTES)


def count_moe_layers(model: nn.Module) -> int:
    """How many modules of the decoder are experts on the seam; 0 for a dense model."""
    return sum(1 for _, module in _decoder(model)[1].named_modules() if is_experts(module))


def moe_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers of `model`, in order. ModelError when there is none or one cannot be understood."""
    prefix, decoder = _decoder(model)
    modules = dict(decoder.named_modules())
    found: list[MoeLayer] = []
    for name, experts in modules.items():
        if is_experts(experts):
            block = modules[name.rpartition(".")[0]]
            found.append(_layer(len(found), prefix + name, _layer_number(name), experts, block, model))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no experts on the transformers experts seam: only "
            "mixture-of-experts models can be recorded or offloaded"
        )
    return found


def decoder_depth(model: nn.Module) -> int:
    """The number of decoder layers, dense ones included."""
    for module in _decoder(model)[1].children():
        if isinstance(module, nn.ModuleList) and any(is_experts(inner) for inner in module.modules()):
            return len(module)
    raise ModelError(f"{type(model).__name__} keeps its MoE layers in no list of decoder layers")


def router_logits(layer: MoeLayer, hidden: Tensor) -> Tensor:
    """The logits [tokens, experts] that `layer`'s router gives `hidden` [..., hidden], in the router's
    precision.

    Applied to the hidden state entering the gate of an earlier layer this is the speculative gate of Eliseev
    & Mazur 2023 (arXiv 2312.17238), section 3.2. Bit for bit what the router computes itself; fires no hooks.
    Whoever ranks these logits rounds them to float16 first, as traces store them.
    """
    if not torch.is_grad_enabled():  # entering no_grad costs as much as a small gate
        return layer.gate.logits(hidden)
    with torch.no_grad():
        return layer.gate.logits(hidden)


def _decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The text decoder and its name within `model` ("" or "model."); a vision tower is not part of it."""
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else model
    if isinstance(decoder, nn.Module):
        for name, module in model.named_modules():
            if module is decoder:
                return (name + "." if name else ""), decoder
    return "", model


def _layer_number(name: str) -> int:
    for part in name.split("."):
        if part.isdigit():
            return int(part)
    raise ModelError(f"{name}: experts outside the list of decoder layers are not supported")


def _layer(index: int, name: str, number: int, experts: nn.Module, block: nn.Module, model: nn.Module) -> MoeLayer:
    count = experts.num_experts
    if not isinstance(count, int) or not 1 <= count <= MAX_EXPERTS:
        raise ModelError(f"{name} has {count} experts; 1 to {MAX_EXPERTS} can be recorded")
    if getattr(experts, "_is_expert_parallel", False):
        raise ModelError(f"{name} is spread over several devices (expert parallelism), which is not supported")
    config = _text_config(model)
    router = _router(name, experts, block, count)
    gate, score = find_gate(router, block, count, int(getattr(config, "hidden_size", 0)), _dtype(model))
    if score == "unknown":
        score = next(
            (s for s in (getattr(config, n, None) for n in _SCORE_NAMES) if s in ("softmax", "sigmoid")),
            score,
        )
    tensors = [p for p in experts.parameters(recurse=False) if p.dim() > 0 and p.shape[0] == count]
    return MoeLayer(
        index=index,
        model_layer=number,
        name=name,
        experts=experts,
        router=router,
        block=block,
        num_experts=count,
        top_k=_top_k(name, router, block, config, count),
        expert_params=sum(tensor[0].numel() for tensor in tensors),
        expert_bytes=sum(tensor[0].numel() * tensor.element_size() for tensor in tensors),
        score_function=score,
        gate=gate,
    )


def _router(name: str, experts: nn.Module, block: nn.Module, count: int) -> nn.Module:
    """The sibling of `experts` named as routers are, else the one with a weight row per expert."""
    siblings = {key: child for key, child in block.named_children() if child is not experts}
    for key in _ROUTER_NAMES:
        if key in siblings:
            return siblings[key]
    with_rows = [s for s in siblings.values() if any(p.dim() == 2 and p.shape[0] == count for p in s.parameters())]
    if len(with_rows) == 1:
        return with_rows[0]
    raise ModelError(f"{name}: {len(with_rows)} modules beside the experts could be their router, expected one")


def _top_k(name: str, router: nn.Module, block: nn.Module, config: object, count: int) -> int:
    for holder in (router, block, config):
        for key in _TOP_K_NAMES:
            value = getattr(holder, key, None)
            if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= count:
                return value
    raise ModelError(f"{name}: how many experts a token chooses is not stated by router, block or config")


def _text_config(model: nn.Module) -> object:
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
