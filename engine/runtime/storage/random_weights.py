"""Random weights of a real model's shapes, so that its time is measured without its checkpoint.

Time depends on sizes and not on values: random experts copy the same bytes and run the same kernels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from engine.runtime.memory import dtype_of
from engine.runtime.storage.slab_layout import Layout, PlainLayout, QuantisedLayout, expert_parameters
from tracekit.recorder.models import empty_model
from tracekit.recorder.seam import MoeLayer, moe_layers

SCALE = 0.02  # of random weights


def random_model(config: PreTrainedConfig, dtype: torch.dtype | str, seed: int) -> PreTrainedModel:
    """A model of random weights and the shapes of a configuration, its experts on the meta device. Deterministic."""
    model = empty_model(config, Path(str(config.name_or_path)), dtype_of(config, dtype))
    served = {id(p) for layer in moe_layers(model) for p in expert_parameters(layer.experts).values()}
    generator = torch.Generator().manual_seed(seed)
    filled: dict[int, nn.Parameter] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in served:
                    continue
                if id(parameter) not in filled:  # tied weights stay tied
                    values = torch.empty(parameter.shape, dtype=parameter.dtype)
                    filled[id(parameter)] = nn.Parameter(values.normal_(0, SCALE, generator=generator), False)
                module._parameters[name] = filled[id(parameter)]
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        experts = {id(layer.experts) for layer in moe_layers(model)}
        for module in model.modules():
            if id(module) not in experts:
                # What is no random number: norms, frequencies of positions.
                model._init_weights(module)  # type: ignore[no-untyped-call]
    model.train(False)
    return model


class RandomExperts:
    """An `Origin` of random experts, the same for a seed; the model's own need no storage."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def accumulate(self, layer: MoeLayer) -> str:
        return "hidden"

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        random_slabs(layout, slabs, self.seed)


def random_slabs(layout: Layout, slabs: Tensor, seed: int) -> None:
    """Fill slabs u8 [experts, bytes] with one random expert each: all alike, since only their bytes count."""
    generator = torch.Generator().manual_seed(seed)
    views = layout.views(slabs[0])
    for name, view in views.items():
        if isinstance(layout, PlainLayout):
            view.normal_(0, SCALE, generator=generator)
        elif isinstance(layout, QuantisedLayout):
            _random_stored(name.rpartition(".")[2], name, view, layout.format.bits, generator)
    slabs[1:] = slabs[0]


def _random_stored(kind: str, name: str, view: Tensor, bits: int, generator: torch.Generator) -> None:
    """Codes at random, with scales and zeros that give weights of about `SCALE`."""
    middle, step = 2 ** (bits - 1), SCALE / 2 ** (bits - 1)
    inner = name.endswith((".scale.scale", ".zero.scale", ".scale.zero", ".zero.zero"))
    outer = name.split(".")[-2]
    if kind == "codes":
        view.random_(0, 256 if view.dtype is torch.uint8 else 1 << 30, generator=generator)
    elif inner and kind == "scale":
        view.fill_((step if outer == "scale" else middle) / 128)
    elif inner:
        view.fill_(0)
    elif view.dtype is torch.uint8:
        view.fill_(128)
    elif kind in ("scale", "zero"):
        view.fill_(step if kind == "scale" else middle)
    else:
        view.normal_(0, SCALE, generator=generator)
