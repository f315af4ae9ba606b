"""What a gate chose, read from the tensors by which the model passes the choice on.

Most families hand their experts `(hidden states, ids, weights)`; they are read there. The others are told by the
shape of what their router returns, which a few random rows show, never by the name of a family:

    pairs    ids [tokens, k] and their weights [tokens, k]
    scores   weights [tokens, experts], zero but for the chosen (Llama 4, NLLB)
    mask     one-hot rows [tokens, experts] and the weights [tokens, 1] (Switch)
    sorted   tokens ordered by expert: the order [tokens * k], tokens per expert, the weights in that order (JetMoE)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NONE = -1  # the id of a slot that no expert was chosen for


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the choice of a layer shows: in the call of its experts, or, in a `form`, in what its router returns.

    `at` says which items of the router's output hold it: (ids, weights), (scores,), (mask, weights) or (order,
    sizes, weights).
    """

    where: Literal["experts", "router"] = "experts"
    form: Literal["pairs", "scores", "mask", "sorted"] = "pairs"
    at: tuple[int, ...] = ()

    def read(self, output: object, top_k: int, experts: int) -> tuple[Tensor, Tensor]:
        """(ids, weights), both [tokens, k], of what the router returned; an unused slot's id is NONE."""
        items = [(output if isinstance(output, tuple | list) else (output,))[place] for place in self.at]
        if self.form == "scores":
            weights, ids = items[0].reshape(-1, experts).topk(top_k, dim=-1)
            return ids.masked_fill(weights == 0, NONE), weights
        if self.form == "mask":
            mask = items[0].reshape(-1, experts)
            ids = mask.argmax(-1, keepdim=True)
            return ids.masked_fill(mask.sum(-1, keepdim=True) == 0, NONE), items[1].reshape(-1, 1)
        if self.form == "sorted":
            order, sizes, gates = items
            ids, weights = torch.empty_like(order), torch.empty_like(gates)
            counts = torch.as_tensor(sizes, device=order.device)
            numbers = torch.arange(experts, device=order.device)
            ids[order] = numbers.repeat_interleave(counts, output_size=len(order))
            weights[order] = gates
            return ids.view(-1, top_k), weights.view(-1, top_k)
        return items[0], items[1]


CALL = Choice()  # the call of the experts


def find_choice(output: object, tokens: int, experts: int) -> tuple[Choice, int] | None:
    """How a router's output for `tokens` random rows shows its choice, and top-k; None where it does not."""
    items = list(output) if isinstance(output, tuple | list) else [output]
    whole = {i: t for i, t in enumerate(items) if isinstance(t, Tensor) and not t.is_floating_point()}
    real = {i: t for i, t in enumerate(items) if isinstance(t, Tensor) and t.is_floating_point()}
    sizes = [i for i, item in enumerate(items) if _is_counts(item, experts)]
    for order, tensor in whole.items():
        gates = next((i for i, gate in real.items() if gate.dim() == 1 and gate.shape == tensor.shape), None)
        if gates is not None and sizes and _is_order(tensor, tokens):
            return Choice("router", "sorted", (order, sizes[0], gates)), len(tensor) // tokens
    for place, tensor in real.items():
        if _has_columns(tensor, tokens, experts) and bool((tensor >= 0).all()) and bool((tensor == 0).any()):
            top_k = int((tensor != 0).sum(-1).max())
            return (Choice("router", "scores", (place,)), top_k) if top_k else None
    for place, tensor in whole.items():
        gates = next((i for i, gate in real.items() if gate.numel() == tokens and gate.shape[-1] == 1), None)
        if gates is not None and _has_columns(tensor, tokens, experts) and int(tensor.max()) == 1:
            return Choice("router", "mask", (place, gates)), 1
    for place, tensor in whole.items():
        gates = next((i for i, gate in reversed(real.items()) if gate.shape == tensor.shape), None)
        if gates is not None and tensor.dim() == 2 and len(tensor) == tokens:
            return Choice("router", "pairs", (place, gates)), tensor.shape[1]
    return None


def _has_columns(tensor: Tensor, tokens: int, experts: int) -> bool:
    return tensor.dim() > 1 and tensor.shape[-1] == experts and tensor.numel() == tokens * experts


def _is_counts(item: object, experts: int) -> bool:
    return isinstance(item, list) and len(item) == experts and all(isinstance(size, int) for size in item)


def _is_order(tensor: Tensor, tokens: int) -> bool:
    """Whether a tensor is a permutation of as many slots for each token."""
    if tensor.dim() != 1 or not len(tensor) or len(tensor) % tokens:
        return False
    return torch.equal(tensor.sort().values, torch.arange(len(tensor), device=tensor.device))
