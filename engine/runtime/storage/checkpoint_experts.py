"""`CheckpointExperts`: an `Origin` that reads a checkpoint straight into slabs, by transformers' own conversions."""

from collections import Counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.runtime.experts.eager import accumulation
from engine.runtime.storage.checkpoint import Checkpoint
from engine.runtime.storage.conversion import Group, Kept, groups_of
from engine.runtime.storage.origin import LoadedExperts, Say
from engine.runtime.storage.slab_layout import Layout, expert_parameters
from tracekit.errors import ModelError
from tracekit.recorder.seam import MoeLayer, moe_layers


class CheckpointExperts:
    """Experts read from a checkpoint, one at a time where they can be told apart.

    `streamed` are the names of all its tensors that are read so. Experts that transformers makes together with other
    weights, or ties to others, are left to it, and found in the model; `say` is called with a line on them.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint, say: Say) -> None:
        self.model, self.checkpoint = model, checkpoint
        served = {f"{layer.name}.{name}" for layer in moe_layers(model) for name in expert_parameters(layer.experts)}
        groups = [group for group in groups_of(model, checkpoint) if served.intersection(group.targets)]
        lacking = served - {name for group in groups for name in group.targets}
        if lacking:
            raise ModelError(
                f"{checkpoint.directory} lacks {len(lacking)} of the model's weights, such as {min(lacking)}"
            )
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        alone = served.difference(tied, tied.values())
        mixed = [group for group in groups if not alone.issuperset(group.targets)]
        if mixed:
            names = sorted(served.intersection(name for group in mixed for name in group.targets))
            say(f"{len(names)} of {len(served)} experts' parameters are loaded whole, such as {names[0]}")
        self._groups: dict[str, Group] = {
            name: group for group in groups if group not in mixed for name in group.targets
        }
        for name, group in self._groups.items():
            experts = model.get_parameter(name).shape[0]
            if group.kept(experts, checkpoint) == "listed" or any(len(names) > 1 for names in group.sources.values()):
                _check_alike(group, experts, checkpoint)
        self.streamed = {name for group in self._groups.values() for name in group.names}

    def accumulate(self, layer: MoeLayer) -> str:
        """Tried on the layer's first expert, which stands for all: how results add up is the same for any weights."""
        whole = expert_parameters(layer.experts)
        try:
            for name, parameter in whole.items():
                if parameter.is_meta:
                    first = self._read(layer, name, parameter, None if self._kept(layer, name) == "together" else 0)[:1]
                    setattr(layer.experts, name, nn.Parameter(first.expand(parameter.shape), requires_grad=False))
            return accumulation(layer.experts)
        finally:
            for name, parameter in whole.items():
                setattr(layer.experts, name, parameter)

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        for name, parameter in expert_parameters(layer.experts).items():
            if not parameter.is_meta:
                continue
            if self._kept(layer, name) == "together":
                layout.pack(name, self._read(layer, name, parameter, None), slabs, device)
                continue
            for expert in range(layer.num_experts):
                layout.pack(name, self._read(layer, name, parameter, expert), slabs[expert : expert + 1], device)
        LoadedExperts().fill(layer, layout, slabs, device)

    def _kept(self, layer: MoeLayer, name: str) -> Kept:
        return self._groups[f"{layer.name}.{name}"].kept(layer.num_experts, self.checkpoint)

    def _read(self, layer: MoeLayer, name: str, parameter: Tensor, expert: int | None) -> Tensor:
        """One parameter of a layer, of one expert, [1, ...], or of all, [experts, ...]."""
        group, checkpoint, dtype = self._groups[f"{layer.name}.{name}"], self.checkpoint, parameter.dtype
        tensors: dict[str, list[Tensor]] = {}
        for pattern, names in group.sources.items():
            if expert is None:
                tensors[pattern] = [checkpoint[one].read(dtype=dtype) for one in names]
            elif self._kept(layer, name) == "listed":
                tensors[pattern] = [checkpoint[names[expert]].read(dtype=dtype)]
            else:
                tensors[pattern] = [checkpoint[names[0]].read(expert, dtype)]
        made = group.convert(self.model, tensors).get(f"{layer.name}.{name}")
        if made is None or made.shape != ((layer.num_experts if expert is None else 1), *parameter.shape[1:]):
            raise ModelError(f"{group.names[0]} and what belongs to it do not make up {layer.name}.{name}")
        return made


def _check_alike(group: Group, experts: int, checkpoint: Checkpoint) -> None:
    """Raise ModelError unless there is a tensor for each expert, all of one shape: transformers would not say which."""
    for pattern, names in group.sources.items():
        lacking = experts - len(names)
        if lacking:
            raise ModelError(
                f"{checkpoint.directory} has {len(names)} of {pattern} for the {experts} experts of "
                f"{group.targets[0]}: {abs(lacking)} are {'missing' if lacking > 0 else 'too many'}"
            )
        shapes = Counter(checkpoint[name].shape for name in names)
        usual = shapes.most_common(1)[0][0]
        odd = next((checkpoint[name] for name in names if checkpoint[name].shape != usual), None)
        if odd is not None:
            raise ModelError(f"{odd.file} holds {odd.name} as {list(odd.shape)}, the other experts' are {list(usual)}")
