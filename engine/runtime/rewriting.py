"""`Rewriting`: a routing policy at work in a running model: the closed loop.

Each visit's choices are altered before the experts are called, in the arguments of that call, so that everything behind
it sees the altered ones: the decisions, the experts, and whoever records. What the next gate is given is what the
altered layer made.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.decisions.routing_places import routing_places
from engine.plan.tables import RoutingPlan
from policies.cache_spec import CacheSpec
from policies.rerouting import Altered, Rerouter, RoutingSpec, altered
from tracekit.errors import ModelError, PlanError
from tracekit.recorder.choice import NONE
from tracekit.recorder.seam import MoeLayer, router_logits
from tracekit.rows import UNUSED

Told = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""Of one visit: choices u16 [tokens, k], their weights f16 and lookahead logits f16 [tokens, experts], if read."""

ReadBack = Callable[[int, Tensor, Tensor, Tensor | None], Told]
"""(layer, index, weights, own logits or None) -> what of these is on the host; own logits before those ahead"""


class Rewriting:
    """Alters the choices of a model's visits, and counts what it did. Raises PolicyError, PlanError as `Rerouter`."""

    def __init__(self, spec: RoutingSpec, cache: CacheSpec, layers: Sequence[MoeLayer]) -> None:
        self.layers = tuple(layers)
        self.altered = Altered()
        self._rerouter = Rerouter(spec, cache)
        self._logits: dict[int, Tensor] = {}
        self._told: Told | None = None

    def reset(self) -> None:
        """Forget every visit, counts included."""
        self.restart()
        self.altered = Altered()
        self._logits.clear()
        self._told = None

    def restart(self) -> None:
        """Forget what the policy knows."""
        self._rerouter.restart()

    def take(self) -> Told | None:
        """What was read back of the visit whose choices have just been altered, as they are now; then forgotten."""
        told, self._told = self._told, None
        return told

    def attach(
        self, read_back: ReadBack, there: Callable[[int], np.ndarray], failed: Callable[[BaseException], None]
    ) -> list[RemovableHandle]:
        """Alter the choices that each layer's experts are called with, from now on.

        `there` says which of a layer's experts are (0: none), `failed` is told what went wrong.
        """
        hooks = []
        for layer in self.layers:

            def before(
                _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], number: int = layer.index
            ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
                # Families name the three differently.
                hidden, index, factors = args if len(args) == 3 else (*args, *kwargs.values())[:3]
                held = there(number)
                try:
                    return (hidden, *self._visit(number, held, index, factors, read_back)), {}
                except BaseException as error:
                    failed(error)
                    raise

            hooks.append(layer.experts.register_forward_pre_hook(before, with_kwargs=True))
            if self._rerouter.reads in ("logits", "scores"):
                note = partial(self._note, layer)
                hooks.append(layer.router.register_forward_hook(note, with_kwargs=True))
        return hooks

    def _note(
        self, layer: MoeLayer, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object
    ) -> None:
        """A router's logits, the same that a recording holds."""
        logits = layer.gate.logits_of(output)
        if logits is None:
            logits = router_logits(layer, next(iter((*args, *kwargs.values()))))
        self._logits[layer.index] = logits

    def _visit(
        self, layer: int, there: np.ndarray, index: Tensor, factors: Tensor, read_back: ReadBack
    ) -> tuple[Tensor, Tensor]:
        own = self._logits.pop(layer, None)
        if own is None and self._rerouter.reads in ("logits", "scores"):
            raise ModelError(f"the router of {self.layers[layer].name} was not called: its logits are unknown")
        ids, weights, told = read_back(layer, index, factors, own)
        assert weights is not None
        logits, lookahead = None, told
        if own is not None and told is not None:
            width = own.shape[1]
            logits = told[:, :width]
            lookahead = np.ascontiguousarray(told[:, width:]) if told.shape[1] > width else None
        real = ids < self.layers[layer].num_experts
        new, heavy = self._rerouter.visit(layer, there, ids, weights, logits)
        self.altered.add(altered(ids, weights, new, real))
        index, factors, halves = put((ids, weights), (new, heavy), real, index, factors)
        self._told = new.astype(np.uint16), halves, lookahead
        return index, factors


def rewriting_of(plan: RoutingPlan, cache: CacheSpec, layers: Sequence[MoeLayer]) -> Rewriting | None:
    """What alters these layers' choices by a plan; None where nothing does.

    Raises PlanError for gates that the policy cannot alter, PolicyError; as `routing_places` does.
    """
    if not plan.alters:
        return None
    for layer in layers:
        if layer.gate.width > layer.num_experts:
            raise PlanError(
                f"the gate of {layer.name} may choose to compute nothing, which no routing policy alters: use "
                'routing.policy = "none"'
            )
    found = {layer.score_function for layer in layers}
    score = found.pop() if len(found) == 1 else "unknown"  # as a recording's manifest says it
    per_layer = tuple(layer.num_experts for layer in layers)
    places = routing_places(plan, per_layer)
    return Rewriting(RoutingSpec(per_layer, plan.policy, plan.parameters, score, places), cache, layers)


def put(
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    real: np.ndarray,
    index: Tensor,
    factors: Tensor,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Altered choices in place of those in `index` and `factors` [tokens, k], and their weights as traces have them.

    `before` and `after` are choices and weights on the host, `real` those that count. What is as it was keeps the
    model's own bits. A dropped choice has the index NONE and no weight.
    """
    (ids, weights), (new, heavy) = before, after
    other_ids, other_weights = real & (new != ids), real & (heavy != weights.astype(np.float64))
    if not (other_ids.any() or other_weights.any()):
        return index, factors, weights
    numbers = np.where(new == UNUSED, NONE, new)
    made = torch.from_numpy(heavy).to(factors.dtype)  # rounded here as the device would
    halves = np.where(other_weights, made.to(torch.float16).numpy(), weights)
    device = index.device
    found = torch.where(_on(other_ids, device), torch.from_numpy(numbers).to(device, index.dtype), index)
    return found, torch.where(_on(other_weights, device), made.to(device), factors), halves


def _on(mask: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(mask).to(device)
