"""Loading a model shard by shard: everything but its experts, and an `Origin` that reads these into their slabs.

transformers loads the model as it always does, conversions, types, ties and buffers included, but is given promises in
place of tensors: one for a tensor of the rest reads it and puts it on the device, one for a tensor of the experts has
a shape and nothing more.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime.checkpoint import Checkpoint, Stored
from engine.runtime.conversion import Group, Kept, groups_of
from engine.runtime.experts import accumulation
from engine.runtime.layout import Layout, expert_parameters
from engine.runtime.memory import dtype_of
from engine.runtime.origin import Loaded, Origin
from tracekit.errors import ModelError
from tracekit.recorder.models import (
    check_complete,
    check_experts,
    empty_model,
    find_model,
    load_config,
    load_generation_settings,
    load_model,
    parse_dtype,
    quietly,
)
from tracekit.recorder.seam import MoeLayer, moe_layers

Say = Callable[[str], object]


@contextmanager
def opened_checkpoint(
    path_or_id: str | Path, dtype: str = "auto", device: torch.device | None = None, say: Say = lambda text: None
) -> Iterator[tuple[Any, Origin]]:
    """The model at `path_or_id`, its experts without storage and the rest on `device`, and where its experts are.

    These can be read within the block. Bit for bit what `load_model` loads. Checkpoints in a quantised format, and
    code that comes with a model, are loaded whole, which `say` is told. Raises ModelError.
    """
    directory = find_model(path_or_id)
    config = load_config(directory)
    check_experts(config, directory)
    reason = _must_be_whole(config)
    if reason:
        say(f"{directory} is loaded whole: {reason}")
        yield load_model(directory, dtype, "cpu")[0], Loaded()
        return
    with Checkpoint(directory) as checkpoint:
        stated, chosen = getattr(config, "dtype", None), parse_dtype(dtype)
        if isinstance(chosen, str):
            chosen = dtype_of(config, chosen) if stated is not None else _stored_dtype(checkpoint)
        empty: Any = empty_model(config, directory, chosen)
        origin = CheckpointExperts(empty, checkpoint, say)
        place = device or torch.device("cpu")
        promises = {name: Promise(checkpoint[name], None if name in origin.streamed else place) for name in checkpoint}
        with quietly(directory):
            # Shapes that differ are reported here, by name.
            options = {"dtype": chosen, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, report = type(empty).from_pretrained(None, config=config, state_dict=promises, **options)
        check_complete(report, directory)
        model.config.name_or_path = str(directory)
        load_generation_settings(model, directory)
        model.train(False)
        origin.model = model
        yield model, origin


class Promise:
    """What transformers takes for a tensor of a state dict. Without a device to put it on, it stays a shape."""

    def __init__(self, stored: Stored, device: torch.device | None) -> None:
        self.stored, self.device = stored, device

    def __getitem__(self, index: object) -> "Promise":
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in the type that is asked for, on the device that was promised."""
        if dtype is not None and dtype.is_floating_point and self.stored.kind is None:
            raise ModelError(
                f"{self.stored.file} holds {self.stored.name} as {self.stored.handle.get_dtype()}, where the model has "
                f"weights in {str(dtype).removeprefix('torch.')}: the checkpoint is of another kind"
            )
        if self.device is None:
            return torch.empty(self.stored.shape, dtype=dtype, device="meta")
        return self.stored.read(dtype=dtype).to(self.device)


class CheckpointExperts:
    """Experts read from a checkpoint, one at a time where they can be told apart.

    `streamed` are the names of all its tensors that are read so. Experts that transformers makes together with other
    weights, or ties to others, are left to it, and found in the model; `say` is told.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, say: Say) -> None:
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
        Loaded().fill(layer, layout, slabs, device)

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


def _must_be_whole(config: Any) -> str:
    """Why a model cannot be loaded shard by shard; "" if it can."""
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are in a quantised format, which transformers unpacks"
    if getattr(config, "auto_map", None):
        return "its code comes with it"
    return ""


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type of the first weights, as transformers takes it where a configuration names none."""
    first = (checkpoint[name].kind for name in checkpoint if checkpoint[name].file == checkpoint.files[0])
    return next((kind for kind in first if kind is not None), torch.get_default_dtype())
