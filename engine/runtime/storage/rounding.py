"""Rounding a model's weights to what they are once stored in a plan's formats, without offloading."""

from typing import TypeVar

import torch
from torch import nn

from engine.plan.tables import WeightsPlan
from engine.runtime.storage.attention import check_attention, quantise_attention
from engine.runtime.storage.host_store import check_storable
from engine.runtime.storage.slab_layout import aligned, expert_parameters, layout_of
from tracekit.recorder.seam import MoeLayer, moe_layers

Model = TypeVar("Model", bound=nn.Module)


def rounded(model: Model, weights: WeightsPlan, device: torch.device | None = None) -> Model:
    """Replace the weights of `model` by what they are once stored in the plan's formats and read again.

    The un-offloaded model that an offloaded one must equal bit for bit; quantising is done on `device`. Raises
    PlanError and ModelError as `offload` does.
    """
    with torch.inference_mode(False), torch.no_grad():
        layers = moe_layers(model)
        for layer in layers:
            check_storable(layer, weights.experts)
        check_attention(model, weights.attention)
        if weights.experts is not None:
            for layer in layers:
                _round_trip(layer, weights.experts, device)
        if weights.attention is not None:
            quantise_attention(model, weights.attention, device or next(model.parameters()).device)
    return model


def _round_trip(layer: MoeLayer, weights: str, device: torch.device | None) -> None:
    experts = layer.experts
    layout = layout_of(experts, weights)
    slabs = torch.empty(layer.num_experts, aligned(layout.bytes), dtype=torch.uint8)[:, : layout.bytes]
    parameters = expert_parameters(experts)
    for name, parameter in parameters.items():
        layout.pack(name, parameter.detach(), slabs, device)
    for expert in range(layer.num_experts):
        for name, value in layout.weights(layout.views(slabs[expert])).items():
            parameters[name].data[expert].copy_(value)
