"""An un-offloaded model whose routers choose as a routing policy would, given what an engine's log says was there."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest

from policies.events import BYPASS, DROP, EVICT, HIT_PREFETCHED, LOAD, PREFETCH, Events
from tests.helpers.reference_routing import EVERY_RULE, Parameters
from tracekit.rows import UNUSED

torch = pytest.importorskip("torch")
from tracekit.recorder.seam import MoeLayer, moe_layers  # noqa: E402  # needs torch


@dataclass
class Counted:
    """How many choices were altered."""

    altered: int = 0


def mask_routers(
    model: Any, policy: str, parameters: Parameters, log: Events, left: list[set[int]] | None = None
) -> Counted:
    """Have the routers of `model` choose by `policy`, visit by visit, beside the caches of `log`, from now on.

    With `left`, the experts of each layer that pruning leaves, beside these.
    """
    layers, counted = moe_layers(model), Counted()
    before = iter(held_before(log, max(layer.num_experts for layer in layers)) if left is None else cycle(left))
    for layer in layers:
        wrap(layer, policy, parameters, before, counted)
    return counted


def held_before(log: Events, experts: int) -> list[set[int]]:
    """The experts of a visit's layer that are there before it, visit by visit; keys are layer * `experts` + expert."""
    held: set[int] = set()
    found = []
    rows = log.rows()
    layers = 1 + max(key for _, kind, key, _ in rows if kind <= BYPASS) // experts
    at = 0
    for visit in range(1 + max(visit for visit, *_ in rows)):
        layer = visit % layers
        found.append({key % experts for key in held if key // experts == layer})
        while at < len(rows) and rows[at][0] == visit:
            _, kind, key, _ = rows[at]
            if kind in (LOAD, PREFETCH):
                held.add(key)
            elif kind in (EVICT, DROP):
                held.discard(key)
            elif kind <= HIT_PREFETCHED:
                assert key in held
            at += 1
    return found


def wrap(layer: MoeLayer, policy: str, parameters: Parameters, before: Any, counted: Counted) -> None:
    forward, none = layer.router.forward, layer.num_experts

    def masked(*args: Any, **kwargs: Any) -> Any:
        logits, scores, indices = forward(*args, **kwargs)
        there = set(next(before))
        scores, indices = scores.clone(), indices.clone()
        halves = scores.to(torch.float16).double()
        known = logits.to(torch.float16).double()
        for token in range(len(indices)):
            ids, weights = indices[token].tolist(), halves[token].tolist()
            new, heavy = EVERY_RULE[policy](ids, weights, known[token].tolist(), there, parameters, "softmax")
            for slot in range(len(ids)):
                counted.altered += new[slot] != ids[slot]
                indices[token, slot] = none if new[slot] == UNUSED else new[slot]
                if heavy[slot] != weights[slot]:
                    scores[token, slot] = torch.tensor(heavy[slot], dtype=torch.float64).to(scores.dtype)
            there |= {expert for expert in new if expert != UNUSED}
        return logits, scores, indices

    layer.router.forward = masked
