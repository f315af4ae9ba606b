"""`Origin`: fills the slabs of a model's experts; by default out of the model (`LoadedExperts`)."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.runtime.experts.eager import accumulation
from engine.runtime.storage.slab_layout import Layout, expert_parameters
from tracekit.recorder.seam import MoeLayer

Say = Callable[[str], object]  # called with a line for the user


class Origin(Protocol):
    """Fills slabs layer by layer, holding no more than it must."""

    def accumulate(self, layer: MoeLayer) -> str:
        """How a layer's experts add up (`experts.eager.accumulation`); asked before anything is filled."""

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        """Fill slabs u8 [experts, bytes]; computing on `device`, by default where weights are."""


def accumulations(layers: Sequence[MoeLayer], origin: Origin) -> list[str]:
    """How the experts of each layer add up: asked once for each kind of module."""
    kinds: dict[type[nn.Module], str] = {}
    for layer in layers:
        if type(layer.experts) not in kinds:
            kinds[type(layer.experts)] = origin.accumulate(layer)
    return [kinds[type(layer.experts)] for layer in layers]


class LoadedExperts:
    """Experts of a model that holds them: they are moved out, a parameter at a time, and leave shapes behind."""

    def accumulate(self, layer: MoeLayer) -> str:
        return accumulation(layer.experts)

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        for name in list(expert_parameters(layer.experts)):
            parameter = expert_parameters(layer.experts)[name].detach()
            if parameter.is_meta:
                continue  # another origin's
            layout.pack(name, parameter, slabs, device)
            setattr(layer.experts, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
            del parameter  # before the next one
