"""`DiskStore`: the experts of a model in files of slabs, read straight into slots; writing and reopening them."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from engine.plan.weights import WeightFormat
from engine.runtime.storage import slab_files
from engine.runtime.storage.attention import quantise_attention
from engine.runtime.storage.origin import Origin, accumulations
from engine.runtime.storage.slab_files import Index
from engine.runtime.storage.slab_layout import Layout, expert_parameters, layout_of
from engine.runtime.storage.store import Store
from tracekit.errors import ModelError
from tracekit.opening import open_descriptor
from tracekit.recorder.describe import config_digest
from tracekit.recorder.models import (
    check_experts,
    empty_model,
    find_model,
    load_config,
    load_generation_settings,
    parse_dtype,
)
from tracekit.recorder.seam import MoeLayer, moe_layers


class SlabExperts:
    """An `Origin` that reads the slabs of a directory back into memory, each checked against its digest."""

    def __init__(self, store: "DiskStore") -> None:
        self.store = store

    def accumulate(self, layer: MoeLayer) -> str:
        return self.store.index.layers[layer.index].accumulate

    def fill(self, layer: MoeLayer, layout: Layout, slabs: Tensor, device: torch.device | None) -> None:
        for expert, slab in enumerate(slabs):
            try:
                self.store.read(layer.index * self.store.experts + expert, slab)
            except OSError as error:
                raise ModelError(str(error)) from None


class DiskSlab:
    """The first `size` bytes of an expert's slab in a file: what a link copies from."""

    __slots__ = ("key", "size", "store")

    def __init__(self, store: "DiskStore", key: int, size: int) -> None:
        self.store, self.key, self.size = store, key, size

    def numel(self) -> int:
        """Bytes, as a tensor says it."""
        return self.size

    def read_into(self, target: Tensor) -> None:
        """Read into a tensor u8 [size] on the host. Raises OSError."""
        self.store.read(self.key, target)


class DiskStore(Store):
    """A store in a directory of slabs (`slab_files`). To CUDA they are read through a buffer that the link has pinned.

    The system's page cache keeps in memory what fits there. The digest of a slab is checked when it is first read
    whole.
    """

    def __init__(self, path: Path, index: Index, layouts: Sequence[Layout]) -> None:
        self.path, self.index, self.layouts = path, index, list(layouts)
        self.experts = max(layer.experts for layer in index.layers)
        self.bytes = sum(layer.experts * layer.stride for layer in index.layers)
        self._files: list[int] = []
        self._checked: set[int] = set()
        try:
            for layer in index.layers:
                self._files.append(open_descriptor(path / layer.file))
        except OSError as error:
            self.close()
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None

    def slab(self, key: int, size: int | None = None) -> DiskSlab:
        return DiskSlab(self, key, self.layout(key).bytes if size is None else size)

    def views(self, key: int) -> dict[str, Tensor]:
        slab = torch.empty(self.layout(key).bytes, dtype=torch.uint8)
        self.read(key, slab)
        return self.layout(key).views(slab)

    def read(self, key: int, target: Tensor) -> None:
        """Read a slab, or its beginning, into host memory u8 [bytes]. OSError when the file is not what it was."""
        layer, expert = divmod(key, self.experts)
        entry = self.index.layers[layer]
        if not self._files:
            raise OSError(f"{self.path} is closed")
        view = target.numpy().data
        done = 0
        while done < len(view):
            count = os.preadv(self._files[layer], [view[done:]], expert * entry.stride + done)
            if count == 0:
                raise OSError(f"{self.path / entry.file} has become shorter")
            done += count
        if key not in self._checked and len(view) == entry.bytes:
            if hashlib.sha256(view).hexdigest() != entry.digests[expert]:
                raise OSError(f"{self.path / entry.file} is damaged at expert {expert}: write the slabs again")
            self._checked.add(key)

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def write_slabs(
    path: Path,
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    origin: Origin,
    formats: tuple[str | None, str | None],
    device: torch.device | None = None,
) -> None:
    """Store the experts of `model` in a new directory of slabs, layer by layer, and copy the rest beside them.

    Afterwards its attention is in its format. Raises ModelError.
    """
    source = slab_files.fingerprint(_checkpoint(model.config))
    layouts = [layout_of(layer.experts, formats[0]) for layer in layers]
    size = sum(map(slab_files.layer_bytes, layers, layouts))
    with slab_files.new_directory(path, size + sum(one.nbytes for one in slab_files.rest_of(model).values())) as folder:
        # One for all layers: memory that is freed does not always go back to the system.
        buffer = torch.empty(max(map(slab_files.layer_bytes, layers, layouts)), dtype=torch.uint8)
        found = [
            slab_files.write_layer(folder, layer, layout, how, origin, buffer, device)
            for layer, layout, how in zip(layers, layouts, accumulations(layers, origin), strict=True)
        ]
        del buffer
        if formats[1] is not None:
            quantise_attention(model, formats[1], device or torch.device("cpu"))
        index = Index(
            version=slab_files.VERSION,
            config_sha256=config_digest(model.config.to_dict()),
            source=source,
            dtype=str(getattr(model, "dtype", "")).removeprefix("torch."),
            experts=formats[0],
            attention=formats[1],
            quantised_on=_quantised_on(formats, device),
            layers=found,
            rest_sha256=slab_files.write_rest(folder, model),
        )
        slab_files.write_index(folder, index)


def open_slabs(
    path: Path, model: PreTrainedModel, layers: Sequence[MoeLayer], formats: tuple[str | None, str | None]
) -> DiskStore:
    """The store of a directory that was written for this model. Its experts lose what storage they have."""
    index = slab_files.read_index(path)
    config = model.config
    if index.config_sha256 != config_digest(config.to_dict()):
        raise ModelError(f"{path} holds slabs of a model with another configuration: choose another directory")
    source = slab_files.fingerprint(_checkpoint(config))
    if None not in (source, index.source) and source != index.source:
        raise ModelError(f"{path} holds slabs of other weights than {_checkpoint(config)}: write them again")
    layouts = [layout_of(layer.experts, formats[0]) for layer in layers]
    slab_files.check_index(path, index, layers, layouts, formats)
    for layer in layers:
        for name, parameter in expert_parameters(layer.experts).items():
            setattr(layer.experts, name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
    return DiskStore(path, index, layouts)


def load_slabs(path_or_id: str | Path, slabs: str | Path, dtype: str = "auto") -> PreTrainedModel:
    """The model at `path_or_id` from a directory of slabs: everything but its experts. Raises ModelError."""
    directory, path = find_model(path_or_id), Path(slabs)
    index = slab_files.read_index(path)
    config = load_config(directory)
    check_experts(config, directory)
    stored, asked = getattr(torch, index.dtype, None), parse_dtype(dtype)
    if not isinstance(stored, torch.dtype):
        raise ModelError(f"{path / slab_files.INDEX} is damaged: {index.dtype!r} is no type")
    if asked not in ("auto", stored):
        raise ModelError(f"{path} holds the model in {index.dtype}, not in {dtype}: choose another --slabs")
    model = empty_model(config, directory, stored)
    if index.attention is not None:
        quantise_attention(model, index.attention, torch.device("meta"))
    for name, tensor in slab_files.read_rest(path, index).items():
        _place(model, name, tensor, path)
    model.tie_weights()
    served = {f"{layer.name}.{name}" for layer in moe_layers(model) for name in expert_parameters(layer.experts)}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    missing = sorted(name for name, tensor in tensors.items() if tensor.is_meta and name not in served)
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} of the model's tensors, such as {missing[0]}: write it again")
    load_generation_settings(model, directory)
    model.train(False)
    return model


def _quantised_on(formats: tuple[str | None, ...], device: torch.device | None) -> str | None:
    """Where weights were quantised: a device's kernels round otherwise than a host's. None where none are."""
    if not any(word is not None and WeightFormat.parse(word).quantised for word in formats):
        return None
    if device is None or device.type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device)


def _place(model: nn.Module, name: str, tensor: Tensor, path: Path) -> None:
    """Give a parameter or buffer its values."""
    parent, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
        old = getattr(module, leaf)
    except AttributeError:
        raise ModelError(f"{path} holds {name}, which the model does not have: it is of another model") from None
    if not isinstance(old, Tensor) or old.shape != tensor.shape:
        raise ModelError(f"{path} holds {name} in another shape than the model's: it is of another model")
    if leaf in module._parameters:
        # As transformers loads it: torch picks other kernels where no weight asks for gradients.
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[leaf] = tensor


def _checkpoint(config: PreTrainedConfig) -> Path | None:
    name = str(getattr(config, "_name_or_path", "") or "")
    return Path(name) if name and Path(name).is_dir() else None
