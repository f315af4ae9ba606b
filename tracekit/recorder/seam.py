"""The experts seam: where the MoE layers of any transformers model are, and what each consists of.

transformers (v5) serves the experts of every MoE family through one call, `experts(hidden_states,
top_k_index, top_k_weights)`, dispatched by `use_experts_implementation`. Modules are recognised by that seam
and by their shapes, never by the name of a family.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.choice import CALL, Choice
from tracekit.recorder.gate import Gate, find_gate
from tracekit.rows import UNUSED

MAX_EXPERTS = UNUSED - 1  # ids are stored as u16

_SEAM_ATTRIBUTES = ("num_experts", "has_bias", "is_transposed", "_apply_gate")
ROUTER_NAMES = ("router", "gate")
_TOP_K_NAMES = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
# Experts of a decoder layer that text never reaches.
_OTHER_MODALITIES = ("vision", "visual", "image", "audio", "speech", "video")
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
    into weights: "softmax", "sigmoid" or "unknown". `choice` says where ids and weights are read. Layers of one
    `stack` run one after the other in one pass: 0 for a decoder, 0 and 1 for an encoder and its decoder.
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
    choice: Choice = CALL
    stack: int = 0


def is_experts(module: nn.Module) -> bool:
    """Whether `module` serves experts through the seam."""
    return all(hasattr(module, name) for name in _SEAM_ATTRIBUTES)


def has_gate(experts: nn.Module) -> bool:
    """Whether experts have gate and up projections in one; transformers 5.0 did not say."""
    return bool(getattr(experts, "has_gate", hasattr(experts, "gate_up_proj")))


def is_concatenated(experts: nn.Module) -> bool:
    """Whether gate stands before up, not row by row between; transformers 5.0 had the latter where it transposed."""
    return bool(getattr(experts, "is_concatenated", not experts.is_transposed))


def moe_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers on the seam of `model`, in order. ModelError when there is none or one cannot be understood."""
    prefix, decoder = text_decoder(model)
    modules = dict(decoder.named_modules())
    found: list[MoeLayer] = []
    for name in seam_names(decoder):
        block = modules[name.rpartition(".")[0]]
        found.append(seam_layer(len(found), prefix + name, layer_number(name), modules[name], block, model))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no experts on the transformers experts seam: only "
            "mixture-of-experts models of families on it can be offloaded"
        )
    return found


def seam_names(decoder: nn.Module) -> list[str]:
    """The names of the modules within `decoder` that serve experts to text through the seam, in order."""
    return [name for name, module in decoder.named_modules() if is_experts(module) and serves_text(name)]


def serves_text(name: str) -> bool:
    """Whether a module of a decoder is, by its name, not for another modality alone."""
    return not any(part.startswith(_OTHER_MODALITIES) for part in name.split("."))


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


def text_decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The text decoder and its name within `model` ("" or "model."); a vision tower is not part of it."""
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else model
    if isinstance(decoder, nn.Module):
        for name, module in model.named_modules():
            if module is decoder:
                return (name + "." if name else ""), decoder
    return "", model


def layer_number(name: str) -> int:
    """The number of the layer that a module of a decoder belongs to, from the module's name."""
    for part in name.split("."):
        if part.isdigit():
            return int(part)
    raise ModelError(f"{name}: experts outside the list of decoder layers are not supported")


def seam_layer(index: int, name: str, number: int, experts: nn.Module, block: nn.Module, model: nn.Module) -> MoeLayer:
    """The layer of experts on the seam."""
    count = experts.num_experts
    if not isinstance(count, int) or not 1 <= count <= MAX_EXPERTS:
        raise ModelError(f"{name} has {count} experts; 1 to {MAX_EXPERTS} can be recorded")
    if getattr(experts, "_is_expert_parallel", False):
        raise ModelError(f"{name} is spread over several devices (expert parallelism), which is not supported")
    config = text_config(model)
    router = _router(name, experts, block, count)
    gate, score = find_gate(router, block, count, int(getattr(config, "hidden_size", 0)), model_dtype(model))
    score = stated_score(config) if score == "unknown" else score
    top_k = stated_top_k(count, router, block, config)
    if not top_k:
        raise ModelError(f"{name}: {why_no_top_k(count, router, block, config)}")
    tensors = [p for p in experts.parameters(recurse=False) if p.dim() > 0 and p.shape[0] == count]
    return MoeLayer(
        index=index,
        model_layer=number,
        name=name,
        experts=experts,
        router=router,
        block=block,
        num_experts=count,
        top_k=top_k,
        expert_params=sum(tensor[0].numel() for tensor in tensors),
        expert_bytes=sum(tensor[0].numel() * tensor.element_size() for tensor in tensors),
        score_function=score,
        gate=gate,
    )


def _router(name: str, experts: nn.Module, block: nn.Module, count: int) -> nn.Module:
    """The sibling of `experts` named as routers are, else the one with a weight row per expert."""
    siblings = {key: child for key, child in block.named_children() if child is not experts}
    for key in ROUTER_NAMES:
        if key in siblings:
            return siblings[key]
    with_rows = [s for s in siblings.values() if any(p.dim() == 2 and p.shape[0] == count for p in s.parameters())]
    if len(with_rows) == 1:
        return with_rows[0]
    raise ModelError(f"{name}: {len(with_rows)} modules beside the experts could be their router, expected one")


def stated_top_k(count: int, *holders: object) -> int:
    """How many of `count` experts a token chooses, as the first of router, block and configuration says; 0: none."""
    for holder in holders:
        for key in _TOP_K_NAMES:
            value = getattr(holder, key, None)
            if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= count:
                return value
    return 0


def why_no_top_k(count: int, *holders: object) -> str:
    """What is wrong where `stated_top_k` finds nothing."""
    for holder in holders:
        for key in _TOP_K_NAMES:
            value = getattr(holder, key, None)
            if isinstance(value, int) and value > count:
                return f"{key} = {value} asks each token for more experts than the {count} there are: mend config.json"
    return "how many experts a token chooses is not stated by router, block or config"


def stated_score(config: object) -> str:
    """The score function that a configuration names; "unknown" where it names none of the two."""
    stated = (getattr(config, name, None) for name in _SCORE_NAMES)
    return next((score for score in stated if score in ("softmax", "sigmoid")), "unknown")


def text_config(model: nn.Module) -> object:
    """The configuration of a model's text decoder."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
