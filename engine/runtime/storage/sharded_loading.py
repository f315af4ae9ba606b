"""A model is loaded shard by shard: everything but its experts, and an `Origin` that reads these into their slabs.

transformers loads the model as it always does, conversions, types, ties and buffers included, but is given a
`LazyTensor` in place of each tensor: that of an expert has only a shape, any other is read when it is asked for.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from engine.runtime.memory import dtype_of
from engine.runtime.storage.checkpoint import Checkpoint, Stored
from engine.runtime.storage.origin import LoadedExperts, Origin, Say
from tracekit.errors import ModelError
from tracekit.recorder.models import (
    check_complete,
    check_experts,
    check_size,
    empty_model,
    find_model,
    load_config,
    load_generation_settings,
    load_without_tokenizer,
    parse_dtype,
    quietly,
)

STREAMED_WITH = {"transformers": (5, 23), "safetensors": (0, 8)}
"""What the way of reading shards was tested with; with older ones models are loaded whole."""


@contextmanager
def opened_checkpoint(
    path_or_id: str | Path, dtype: str = "auto", device: torch.device | None = None, say: Say = lambda text: None
) -> Iterator[tuple[PreTrainedModel, Origin]]:
    """The model at `path_or_id`, its experts without storage and the rest on `device`, and where its experts are.

    These can be read within the block. Bit for bit what `load_without_tokenizer` loads. Checkpoints in a quantised
    format, and code that comes with a model, are loaded whole, which `say` is called with. Raises ModelError.
    """
    directory = find_model(path_or_id)
    config = load_config(directory)
    check_experts(config, directory)
    reason = _must_be_whole(config)
    if reason:
        say(f"{directory} is loaded whole: {reason}")
        yield load_without_tokenizer(directory, dtype, "cpu"), LoadedExperts()
        return
    # Here, since older versions of transformers have not what it imports.
    from engine.runtime.storage.checkpoint_experts import CheckpointExperts

    with Checkpoint(directory) as checkpoint:
        stated, chosen = getattr(config, "dtype", None), parse_dtype(dtype)
        if isinstance(chosen, str):
            chosen = dtype_of(config, chosen) if stated is not None else _stored_dtype(checkpoint)
        empty = empty_model(config, directory, chosen)
        check_size(empty, directory)
        origin = CheckpointExperts(empty, checkpoint, say)
        place = device or torch.device("cpu")
        places = {name: None if name in origin.streamed else place for name in checkpoint}
        state = {name: LazyTensor(checkpoint[name], where) for name, where in places.items()}
        with quietly(directory):
            # Shapes that differ are reported here, by name.
            options = {"dtype": chosen, "ignore_mismatched_sizes": True, "output_loading_info": True}
            kind: Any = type(empty)  # transformers types no loading info
            model, report = kind.from_pretrained(None, config=config, state_dict=state, **options)
        check_complete(report, directory)
        model.config.name_or_path = str(directory)
        load_generation_settings(model, directory)
        model.train(False)
        origin.model = model
        yield model, origin


class LazyTensor:
    """What transformers takes for a tensor of a state dict. Without a device to put it on, it stays a shape."""

    def __init__(self, stored: Stored, device: torch.device | None) -> None:
        self.stored, self.device = stored, device

    def __getitem__(self, index: object) -> "LazyTensor":
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in the type that is asked for, on its device."""
        if dtype is not None and dtype.is_floating_point and self.stored.kind is None:
            raise ModelError(
                f"{self.stored.file} holds {self.stored.name} as {self.stored.handle.get_dtype()}, where the model has "
                f"weights in {str(dtype).removeprefix('torch.')}: the checkpoint is of another kind"
            )
        if self.device is None:
            return torch.empty(self.stored.shape, dtype=dtype, device="meta")
        return self.stored.read(dtype=dtype).to(self.device)


def too_old() -> str:
    """What of the installed packages cannot load any model shard by shard; "" if they can."""
    for package, wanted in STREAMED_WITH.items():
        have = metadata.version(package)
        if tuple(map(int, re.findall(r"\d+", have)[:2])) < wanted:
            return f"{package} {have} is installed, and only {'.'.join(map(str, wanted))} or newer reads it in parts"
    return ""


def _must_be_whole(config: PreTrainedConfig) -> str:
    """Why a model cannot be loaded shard by shard; "" if it can."""
    if reason := too_old():
        return reason
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are in a quantised format, which transformers unpacks"
    if getattr(config, "auto_map", None):
        return "its code comes with it"
    return ""


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type of the first weights, as transformers takes it where a configuration names none."""
    first = (checkpoint[name].kind for name in checkpoint if checkpoint[name].file == checkpoint.files[0])
    return next((kind for kind in first if kind is not None), torch.get_default_dtype())
