"""RoutingCollector: hooks that watch the gates of a model during any forward pass."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracekit.errors import ModelError
from tracekit.recorder.seam import MoeLayer, moe_layers, router_logits
from tracekit.rows import UNUSED


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """What the gates chose in one forward pass; a row per token, padding included, in the model's (batch,
    time) order.

    experts u16 and weights f16 [tokens, layers, top_k], unused slots 65535; logits f16 [tokens, layers,
    experts]; lookahead[D] f16 [tokens, layers - D, experts]: gate l + D on the hidden state entering gate l.
    """

    experts: NDArray[np.uint16]
    weights: NDArray[np.float16]
    logits: NDArray[np.float16] | None
    lookahead: dict[int, NDArray[np.float16]]

    def select(self, rows: NDArray[np.intp]) -> "Routing":
        """The given rows, in the given order."""
        return Routing(
            self.experts[rows],
            self.weights[rows],
            None if self.logits is None else self.logits[rows],
            {distance: array[rows] for distance, array in self.lookahead.items()},
        )


@dataclass(slots=True)
class _Capture:
    """The tensors of one forward pass, on the model's device, by layer."""

    experts: dict[int, Tensor] = field(default_factory=dict)  # [tokens, k]
    weights: dict[int, Tensor] = field(default_factory=dict)  # [tokens, k]
    logits: dict[int, Tensor] = field(default_factory=dict)  # [tokens, experts]
    lookahead: dict[int, dict[int, Tensor]] = field(default_factory=dict)  # distance -> entry l -> [tokens, experts]


class RoutingCollector:
    """Collects the routing of every forward pass made while it is open.

        with RoutingCollector(model, logits=True, lookahead=(1,)) as collector:
            model(input_ids)
            routing = collector.take()

    Per layer it only keeps references; a pass reaches the host in one copy, when taken. ModelError for a
    lookahead distance that the model has no layers for, and in `take` when a router does not show the logits
    that were asked for.
    """

    def __init__(
        self, model: nn.Module | Sequence[MoeLayer], *, logits: bool = False, lookahead: Sequence[int] = ()
    ) -> None:
        self.layers = moe_layers(model) if isinstance(model, nn.Module) else list(model)
        self.top_k = max(layer.top_k for layer in self.layers)
        self.num_experts = max(layer.num_experts for layer in self.layers)
        self.with_logits = logits
        self.distances = tuple(sorted(set(lookahead)))
        for distance in self.distances:
            if not 1 <= distance < len(self.layers):
                raise ModelError(
                    f"lookahead {distance} is impossible: the model has {len(self.layers)} MoE layers, "
                    f"so 1 to {len(self.layers) - 1} can be asked for"
                )
        self._open = _Capture()
        self._done: deque[_Capture] = deque()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer in self.layers:
            self._handles.append(layer.experts.register_forward_pre_hook(self._on_experts(layer), with_kwargs=True))
            if self.with_logits:
                self._handles.append(layer.router.register_forward_hook(self._on_logits(layer), with_kwargs=True))
            ahead = [(d, self.layers[layer.index + d]) for d in self.distances if layer.index + d < len(self.layers)]
            if ahead:
                hook = self._on_router(layer, ahead)
                self._handles.append(layer.router.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def waiting(self) -> int:
        """How many finished forward passes have not been taken yet."""
        return len(self._done)

    def take(self, rows: NDArray[np.intp] | None = None) -> Routing:
        """The oldest finished forward pass not yet taken, all of it or the given rows.

        ModelError when no pass has finished, a pass skipped a MoE layer, or a gate's numbers are not finite.
        """
        if not self._done:
            raise ModelError("no forward pass reached the last MoE layer: there is no routing to take")
        routing = self._to_host(self._done.popleft())
        if rows is not None:
            routing = routing.select(rows)
        wrong = ~np.isfinite(routing.weights)
        if wrong.any() and (wrong := wrong & (routing.experts != UNUSED)).any():
            layer = self.layers[int(np.argwhere(wrong)[0, 1])]
            raise ModelError(
                f"the gate of {layer.name} gave weights that are not finite: the model is damaged, "
                "or its dtype overflows"
            )
        return routing

    def _on_experts(self, layer: MoeLayer) -> Callable[..., None]:
        last = len(self.layers) - 1

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _, indices, weights = (*args, *kwargs.values())[:3]  # families name them differently
            self._open.experts[layer.index] = indices.detach()
            self._open.weights[layer.index] = weights.detach()
            if layer.index == last:
                self._done.append(self._open)
                self._open = _Capture()

        return hook

    def _on_logits(self, layer: MoeLayer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            logits = layer.gate.logits_of(output)
            if logits is None:
                logits = router_logits(layer, next(iter((*args, *kwargs.values()))))
            self._open.logits[layer.index] = logits.detach()

        return hook

    def _on_router(self, layer: MoeLayer, ahead: list[tuple[int, MoeLayer]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = next(iter((*args, *kwargs.values())))
            for distance, later in ahead:
                self._open.lookahead.setdefault(distance, {})[layer.index] = router_logits(later, hidden)

        return hook

    def _to_host(self, capture: _Capture) -> Routing:
        layers = len(self.layers)
        if len(capture.experts) != layers:
            missing = next(layer.name for layer in self.layers if layer.index not in capture.experts)
            raise ModelError(f"{missing} took no part in a forward pass: its routing cannot be recorded")
        # All parts go over as 16-bit integers, side by side: one copy and one synchronisation per pass.
        parts = [self._stack(capture.experts, self.top_k, -1).to(torch.int16)]
        parts.append(_half_bits(self._stack(capture.weights, self.top_k, 0.0)))
        if self.with_logits:
            parts.append(_half_bits(self._stack(capture.logits, self.num_experts, float("-inf"))))
        for distance in self.distances:
            parts.append(_half_bits(self._stack(capture.lookahead[distance], self.num_experts, float("-inf"))))
        host = torch.cat([part.flatten(1) for part in parts], dim=1).cpu().numpy()
        arrays = iter(np.split(host, np.cumsum([part[0].numel() for part in parts])[:-1], axis=1))
        shape = (len(host), layers, self.top_k)
        return Routing(
            next(arrays).view(np.uint16).reshape(shape),
            next(arrays).view(np.float16).reshape(shape),
            next(arrays).view(np.float16).reshape(len(host), layers, -1) if self.with_logits else None,
            {d: next(arrays).view(np.float16).reshape(len(host), layers - d, -1) for d in self.distances},
        )

    def _stack(self, by_layer: dict[int, Tensor], width: int, filler: float) -> Tensor:
        """[tokens, layers, width] of the layers' tensors, narrower layers filled up."""
        rows = []
        for index in sorted(by_layer):
            tensor = by_layer[index].reshape(-1, by_layer[index].shape[-1])
            if tensor.shape[1] < width:
                tensor = nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=filler)
            rows.append(tensor)
        return torch.stack(rows, dim=1)


def _half_bits(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16).view(torch.int16)
