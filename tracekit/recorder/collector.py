"""RoutingCollector: watches the gates of a model during any forward pass."""

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tracekit.errors import ModelError
from tracekit.recorder.choice import NONE
from tracekit.recorder.gate import WATCHED
from tracekit.recorder.layers import routed_layers
from tracekit.recorder.packing import Captured, Packed, Pass, Routing, pack
from tracekit.recorder.seam import MoeLayer, router_logits

Call = Callable[..., object]
"""The `forward` of a module."""


class RoutingCollector:
    """Collects the routing of every forward pass made while it is open.

        with RoutingCollector(model, logits=True, lookahead=(1,)) as collector:
            model(input_ids)
            routing = collector.take()

    A pass costs a reference per layer; `take` and `pack` bring passes to the host, `pack` many in one copy that
    need not be waited for. A pass through the encoder of an encoder-decoder model and a pass through its decoder
    count as two, each with nothing chosen in the layers it does not run.

    ModelError for a lookahead distance that the model has no layers for, for a pass that skips a layer, and when a
    router does not show the logits that were asked for.
    """

    def __init__(
        self, model: nn.Module | Sequence[MoeLayer], *, logits: bool = False, lookahead: Sequence[int] = ()
    ) -> None:
        self.layers = routed_layers(model) if isinstance(model, nn.Module) else list(model)
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
        numbers = sorted({layer.stack for layer in self.layers})
        self._open = {stack: _Open([la for la in self.layers if la.stack == stack]) for stack in numbers}
        self._done: deque[Pass] = deque()
        self._watched: list[tuple[nn.Module, Call | None]] = []

    def __enter__(self) -> Self:
        for layer in self.layers:
            if layer.choice.where == "experts":
                self._watch(layer.experts, self._on_experts(layer))
            ahead = tuple(
                (distance, self.layers[layer.index + distance])
                for distance in self.distances
                if layer.index + distance < len(self.layers)
                and self.layers[layer.index + distance].stack == layer.stack
            )
            if ahead or self.with_logits or layer.choice.where == "router":
                self._watch(layer.router, self._on_router(layer, ahead))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, own in reversed(self._watched):
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._watched.clear()

    @property
    def waiting(self) -> int:
        """How many finished forward passes have not been taken yet."""
        return len(self._done)

    def take(self, rows: NDArray[np.intp] | None = None) -> Routing:
        """The oldest finished forward pass not yet taken, all of it or the given rows.

        ModelError when no pass has finished, a pass skipped a MoE layer, or a gate's numbers are not finite.
        """
        packed = self.pack(1)
        return packed.result([rows])

    def pack(self, passes: int) -> Packed:
        """The oldest so many passes, on their way to the host. ModelError as for `take`."""
        if passes < 1 or len(self._done) < passes:
            self.check_finished()
            raise ModelError("no forward pass reached the last MoE layer: there is no routing to take")
        taken = [self._done.popleft() for _ in range(passes)]
        return pack(taken, self.layers, self.top_k, self.num_experts, self.with_logits, self.distances)

    def check_finished(self) -> None:
        """Raise ModelError when the last forward pass left out a layer that should have run."""
        for stack in self._open.values():
            ran = [layer for layer in stack.layers if ("ids", 0, layer.index) in stack.captured]
            if ran:
                missing = next(layer for layer in stack.layers if layer not in ran)
                raise ModelError(f"{missing.name} took no part in a forward pass: its routing cannot be recorded")

    def _watch(self, module: nn.Module, watching: Callable[[Call], Call]) -> None:
        # In the place of `forward`: hooks cost several times as much, on every layer of every token.
        watcher = watching(module.forward)
        setattr(watcher, WATCHED, module.forward)
        self._watched.append((module, module.__dict__.get("forward")))
        module.forward = watcher

    def _on_experts(self, layer: MoeLayer) -> Callable[[Call], Call]:
        experts, computes_nothing = layer.num_experts, layer.gate.width > layer.num_experts
        chosen = self._chosen(layer)

        def watching(forward: Call) -> Call:
            def watched(*args: Tensor, **kwargs: Tensor) -> object:
                # Families name them differently.
                _, ids, weights = args if len(args) == 3 else (*args, *kwargs.values())[:3]
                chosen(ids.masked_fill(ids >= experts, NONE) if computes_nothing else ids, weights)
                return forward(*args, **kwargs)

            return watched

        return watching

    def _on_router(self, layer: MoeLayer, ahead: tuple[tuple[int, MoeLayer], ...]) -> Callable[[Call], Call]:
        stack, gate, choice = self._open[layer.stack], layer.gate, layer.choice
        keys = tuple((("ahead", distance, layer.index), later) for distance, later in ahead)
        key, choices = ("logits", 0, layer.index), gate.width or layer.num_experts
        with_logits, chosen = self.with_logits, self._chosen(layer) if choice.where == "router" else None

        def watching(forward: Call) -> Call:
            def watched(*args: Tensor, **kwargs: Tensor) -> object:
                hidden = args[0] if args else next(iter(kwargs.values()))
                for place, later in keys:
                    stack.captured[place] = router_logits(later, hidden)
                output = forward(*args, **kwargs)
                if with_logits:
                    logits = gate.logits_of(output)
                    stack.captured[key] = router_logits(layer, hidden) if logits is None else logits
                if chosen is not None:
                    chosen(*choice.read(output, layer.top_k, choices))
                return output

            return watched

        return watching

    def _chosen(self, layer: MoeLayer) -> Callable[[Tensor, Tensor], None]:
        stack, done = self._open[layer.stack], self._done
        ids_key, weights_key = ("ids", 0, layer.index), ("weights", 0, layer.index)

        def chosen(ids: Tensor, weights: Tensor) -> None:
            captured = stack.captured
            if ids_key in captured:
                raise ModelError(f"{layer.name} ran twice in a forward pass, or the pass before was cut off")
            captured[ids_key] = ids
            captured[weights_key] = weights
            stack.left -= 1
            if not stack.left:
                done.append(Pass(stack.layers, captured))
                stack.captured, stack.left = {}, len(stack.layers)

        return chosen


class _Open:
    """The pass through a stack of layers that has not finished."""

    __slots__ = ("captured", "layers", "left")

    def __init__(self, layers: list[MoeLayer]) -> None:
        self.layers = layers
        self.captured: Captured = {}
        self.left = len(layers)  # layers that have not run
