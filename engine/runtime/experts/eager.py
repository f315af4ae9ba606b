"""The experts function, which MoE layers call instead of their own experts, and how one expert is computed.

transformers (v5) dispatches `experts(hidden_states, top_k_index, top_k_weights)` of every family to the
function that `config._experts_implementation` names. Ours looks up the offloading state on the module it is
called for.

Results are bit-identical to the family's eager implementation: the same products of the same rows per expert,
added up in ascending order of experts whatever order they were computed in. `accumulation` proves it on a few
rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.runtime.storage.slab_layout import expert_parameters
from engine.runtime.visit_routing import Routing, TokenRouting, sort_by_expert
from tracekit.errors import ModelError
from tracekit.recorder.seam import has_gate

IMPLEMENTATION = "tracekit-offload"
CONFIGURED = "_experts_implementation"  # the attribute of a config that names the implementation
SERVE = "_tracekit_serve"  # the attribute of an experts module that holds what serves it
WRAPPED = "__wrapped__"  # the attribute of a wrapped function, here what `use_experts_implementation` wrapped

Serve = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [tokens, hidden], top-k indices [tokens, k], top-k weights [tokens, k]) -> [tokens, hidden]"""

ComputeExpert = Callable[[int, Tensor], Tensor]
"""(expert, rows [n, hidden]) -> [n, hidden]"""


def register() -> None:
    """Make the experts function known to transformers under `IMPLEMENTATION`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, offloaded_experts)


def serve_experts(experts: nn.Module, serve: Serve) -> None:
    """Have `serve` called for `experts` from now on."""
    setattr(experts, SERVE, serve)
    setattr(experts.config, CONFIGURED, IMPLEMENTATION)


def offloaded_experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The function that transformers calls, for any module that shares the offloaded model's config."""
    serve: Serve | None = getattr(module, SERVE, None)
    if serve is None:
        return eager_experts(module, hidden_states, top_k_index, top_k_weights)
    return serve(hidden_states, top_k_index, top_k_weights)


def eager_experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The family's own experts, as transformers writes them."""
    own: Callable[..., Tensor] = getattr(type(module).forward, WRAPPED)
    return own(module, hidden_states, top_k_index, top_k_weights)


Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(an expert's tensors by parameter name, rows [n, hidden]) -> [n, hidden]"""


def expert_forward(module: nn.Module, device: str | None = None) -> Forward:
    """How one expert of `module` computes, on its own device or another. What the module says is asked here, once."""
    project = _transposed if module.is_transposed else functional.linear
    gated = has_gate(module)
    first = "gate_up_proj" if gated else "up_proj"
    activate: Callable[[Tensor], Tensor] = getattr(module, "_apply_gate" if gated else "act_fn")  # [n, intermediate]
    norm = module.get_submodule("post_expert_norm") if getattr(module, "has_post_expert_norm", False) else None
    if norm is not None and device is not None:
        norm = deepcopy(norm).to(device)

    def forward(weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        # Biases are added apart: a fused addition would round once where the families round twice.
        inner = project(rows, weights[first])
        if (bias := weights.get(f"{first}_bias")) is not None:
            inner = inner + bias
        out = project(activate(inner), weights["down_proj"])
        if (bias := weights.get("down_proj_bias")) is not None:
            out = out + bias
        if norm is not None:
            out = norm(out)
        return out

    return forward


def _transposed(rows: Tensor, weight: Tensor) -> Tensor:
    return rows @ weight


def compute(
    order: Iterable[int],
    compute_expert: ComputeExpert,
    hidden: Tensor,
    top_k_weights: Tensor,
    routing: Routing | TokenRouting,
    accumulate: str = "hidden",
) -> Tensor:
    """The weighted sum of experts for each token, computed in the given order and added in ascending order.

    `accumulate` is the type of the sum: "hidden", "weights" or "float32". hidden [tokens, hidden], top_k_weights
    [tokens, k]. Returns [tokens, hidden].
    """
    dtype = {"hidden": hidden.dtype, "weights": top_k_weights.dtype, "float32": torch.float32}[accumulate]
    total = torch.zeros_like(hidden, dtype=dtype)
    if isinstance(routing, TokenRouting):
        _add_token(total, order, compute_expert, hidden, top_k_weights, routing)
    else:
        _add_tokens(total, order, compute_expert, hidden, top_k_weights, routing)
    return total if dtype is hidden.dtype else total.to(hidden.dtype)


def _add_token(
    total: Tensor,
    order: Iterable[int],
    compute_expert: ComputeExpert,
    hidden: Tensor,
    top_k_weights: Tensor,
    routing: TokenRouting,
) -> None:
    factors = top_k_weights.reshape(-1, 1).unbind(0)  # k of [1]
    found = {expert: compute_expert(expert, hidden) * factors[routing.place[expert]] for expert in order}
    for expert in sorted(found):
        total += found[expert] if total.dtype is found[expert].dtype else found[expert].to(total.dtype)


def _add_tokens(
    total: Tensor,
    order: Iterable[int],
    compute_expert: ComputeExpert,
    hidden: Tensor,
    top_k_weights: Tensor,
    routing: Routing,
) -> None:
    """An expert's result is added once those of all smaller experts have been."""
    factors = top_k_weights.reshape(-1)[routing.choice, None]  # [assignments, 1]
    waiting: dict[int, Tensor] = {}
    ascending = deque(routing.span)
    for expert in order:
        span = routing.span[expert]
        out = compute_expert(expert, routing.rows(hidden, expert))  # [n, hidden]
        waiting[expert] = (out * factors[span]).to(total.dtype)  # what it is added as: half as much to keep
        while ascending and ascending[0] in waiting:
            smallest = ascending.popleft()
            total.index_add_(0, routing.token[routing.span[smallest]], waiting.pop(smallest))


def accumulation(experts: nn.Module) -> str:
    """How `compute` must add up to equal the family's eager experts bit for bit: found by trying on a few rows.

    ModelError when they do not agree in any type of the sum: then this family computes something else.
    """
    stacked = expert_parameters(experts)
    first = stacked.get("gate_up_proj", stacked.get("up_proj"))
    if first is None or "down_proj" not in stacked:
        raise ModelError(f"{type(experts).__name__} holds {', '.join(stacked)}: no layout of experts that is known")
    count = first.shape[0]
    hidden, ids, factors = _probe(first.shape[1 if experts.is_transposed else 2], count, first)

    forward = expert_forward(experts)

    def compute_expert(expert: int, rows: Tensor) -> Tensor:
        return forward({name: stacked[name][expert] for name in stacked}, rows)

    def agree(accumulate: str, rows: slice, factors: Tensor) -> bool:
        routing = sort_by_expert(ids[rows].cpu().numpy().astype("uint16"), count, first.device)
        given = compute(routing.demand, compute_expert, hidden[rows], factors[rows], routing, accumulate)
        return torch.equal(given, eager_experts(experts, hidden[rows], ids[rows], factors[rows]))

    tries = [(rows, w) for rows in (slice(0, 4), slice(0, 1)) for w in (factors.to(hidden.dtype), factors)]
    with torch.no_grad():
        for accumulate in ("hidden", "weights", "float32"):
            if all(agree(accumulate, *given) for given in tries):
                return accumulate
    raise ModelError(
        f"{type(experts).__name__} computes its experts in a way of its own, which the engine cannot equal "
        "bit for bit; load the model in float32, or leave it on one device"
    )


def _probe(width: int, num_experts: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed random hidden states [4, width], top-k ids [4, k] and float32 weights [4, k]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, width, generator=generator).to(like)  # [tokens, hidden]
    scores = torch.rand(4, num_experts, generator=generator)  # [tokens, experts]
    factors, ids = scores.topk(min(3, num_experts))  # [tokens, k]
    return hidden, ids.to(like.device), factors.to(like.device)
