"""A directory of slabs: every expert of a model as the engine stores it, written once and reopened in seconds.

    index.json        what the files hold, of which model, and a sha256 of every slab
    layer-00000.slabs the slabs of a layer, one behind the other, each on a boundary of 64 bytes
    rest.safetensors  everything but the experts, as the model holds it once loaded

A directory is written under a temporary name and renamed when complete. Opening it reads the index and the rest; a
slab's digest is checked when the slab is first read.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.runtime.storage.origin import Origin
from engine.runtime.storage.slab_layout import Layout, aligned
from tracekit.durable import check_place
from tracekit.errors import ModelError, TraceError
from tracekit.opening import open_file, read_file
from tracekit.recorder.seam import MoeLayer

INDEX, REST = "index.json", "rest.safetensors"
VERSION = 1
_SAMPLE = 1 << 20
_MAX_INDEX_BYTES = 256 << 20
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class LayerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The slabs of one layer: `experts` of `bytes` each, `stride` apart; `fields` are name, type, shape, offset."""

    name: str
    file: Annotated[str, msgspec.Meta(pattern=r"^layer-\d{5}\.slabs$")]
    experts: Count
    bytes: Count
    stride: Count
    fields: list[tuple[str, str, list[int], int]]
    accumulate: str
    digests: list[Digest]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a directory of slabs holds.

    `source` is the fingerprint of the checkpoint, None when it is unknown; `quantised_on` the device that quantised,
    None when nothing is quantised or the directory is older than this field.
    """

    version: int
    config_sha256: str
    source: str | None
    dtype: str
    experts: str | None
    attention: str | None
    quantised_on: str | None = None
    layers: list[LayerFile]
    rest_sha256: Digest


def fingerprint(directory: Path | None) -> str | None:
    """A digest of a checkpoint: names and sizes of its weight files, and samples of their bytes.

    Samples, since all of a large checkpoint takes minutes; training a model further changes them too.
    """
    from tracekit.recorder.files import weight_files

    if directory is None or not directory.is_dir():
        return None
    found = hashlib.sha256()
    for path in weight_files(directory):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open_file(path) as file:
            for start in sorted({0, max(0, size // 2), max(0, size - _SAMPLE)}):
                file.seek(start)
                found.update(file.read(_SAMPLE))
    return found.hexdigest()


@contextmanager
def new_directory(path: Path, size: int) -> Iterator[Path]:
    """A directory to fill with `size` bytes, which takes the name `path` when the block ends well, and else is removed.

    What a killed process has left of one is removed first. ModelError when the disk is full, or another is at work.
    """
    if path.exists():
        raise ModelError(f"{path} exists: choose another directory for the slabs, or remove it")
    try:
        check_place(path)
    except TraceError as error:
        raise ModelError(str(error)) from None
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with _locked(temporary, path):
            try:
                _empty(temporary)
                free = shutil.disk_usage(temporary).free
                if free < size:
                    raise ModelError(f"cannot write {path}: it takes {size} bytes, and the disk has {free} left")
                yield temporary
                sync(temporary)
                temporary.rename(path)
                sync(path.absolute().parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(f"cannot write {path}: {reason}") from None


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    """Make a directory and hold it: a lock goes with the process, whatever ends it."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_ino == folder.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ModelError(f"{path} is being written by another process: wait for it")
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()


def sync(path: Path) -> None:
    """Have a file or directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def layer_bytes(layer: MoeLayer, layout: Layout) -> int:
    """Bytes of the slabs of one layer."""
    return layer.num_experts * aligned(layout.bytes)


def write_layer(
    folder: Path,
    layer: MoeLayer,
    layout: Layout,
    accumulate: str,
    origin: Origin,
    buffer: Tensor,
    device: torch.device | None,
) -> LayerFile:
    """Write one layer's slabs, which are put together in `buffer`, u8 [`layer_bytes` at least]."""
    stride = aligned(layout.bytes)
    slabs = buffer[: layer_bytes(layer, layout)].zero_().view(layer.num_experts, stride)
    origin.fill(layer, layout, slabs[:, : layout.bytes], device)
    file = f"layer-{layer.index:05d}.slabs"
    with (folder / file).open("wb") as target:
        target.write(slabs.numpy().data)
    sync(folder / file)
    return LayerFile(
        name=layer.name,
        file=file,
        experts=layer.num_experts,
        bytes=layout.bytes,
        stride=stride,
        fields=fields_of(layout),
        accumulate=accumulate,
        digests=[hashlib.sha256(slab[: layout.bytes].numpy().data).hexdigest() for slab in slabs],
    )


def fields_of(layout: Layout) -> list[tuple[str, str, list[int], int]]:
    """The fields of a layout as an index lists them."""
    return [(f.name, str(f.dtype).removeprefix("torch."), list(f.shape), f.offset) for f in layout.fields]


def write_rest(folder: Path, model: nn.Module) -> str:
    """Write every parameter and buffer that has values; returns the file's sha256."""
    kept: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in rest_of(model).items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in places:  # which the format cannot hold
            value = value.clone()
        places.add(value.untyped_storage().data_ptr())
        kept[name] = value
    save_file(kept, folder / REST)
    sync(folder / REST)
    return file_digest(folder / REST)


def rest_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer that has values, each once."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}


def write_index(folder: Path, index: Index) -> None:
    """Write the index, which makes the directory complete."""
    (folder / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1))
    sync(folder / INDEX)


def read_index(path: Path) -> Index:
    """The index of a directory of slabs, its files being there in full length. Raises ModelError."""
    try:
        raw = read_file(path / INDEX, _MAX_INDEX_BYTES)
        version = json.loads(raw).get("version")
        if version != VERSION:
            raise ModelError(f"{path} has version {str(version)[:20]}, this engine reads {VERSION}: write it again")
        index = msgspec.json.decode(raw, type=Index)
    except (ValueError, AttributeError, RecursionError, msgspec.DecodeError) as error:
        raise ModelError(f"{path / INDEX} is damaged: {' '.join(str(error).split())[:200]}") from None
    except OSError as error:
        raise ModelError(f"{path} is no directory of slabs: {INDEX}: {error.strerror or error}") from None
    for layer in index.layers:
        wanted = layer.experts * layer.stride
        file = path / layer.file
        size = file.stat().st_size if file.is_file() else -1
        if size != wanted or layer.bytes > layer.stride or len(layer.digests) != layer.experts:
            raise ModelError(f"{file} is missing or damaged: it should have {wanted} bytes; write the slabs again")
    return index


def read_rest(path: Path, index: Index) -> dict[str, torch.Tensor]:
    """What `write_rest` wrote, its digest checked. Raises ModelError."""
    try:
        if file_digest(path / REST) != index.rest_sha256:
            raise ModelError(f"{path / REST} is damaged: its digest is not the index's; write the slabs again")
        return load_file(path / REST)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path / REST} cannot be read: {error}") from None


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_index(
    path: Path, index: Index, layers: Sequence[MoeLayer], layouts: Sequence[Layout], formats: tuple[str | None, ...]
) -> None:
    """Raise ModelError unless a directory holds these layers in these layouts."""
    if (index.experts, index.attention) != formats:
        have, want = (
            " and ".join(f"{word or 'as loaded'}" for word in pair)
            for pair in ((index.experts, index.attention), formats)
        )
        raise ModelError(f"{path} holds experts and attention in {have}, the plan says {want}: choose another --slabs")
    theirs = [(layer.name, layer.experts, layer.bytes, layer.fields) for layer in index.layers]
    ours = [
        (layer.name, layer.num_experts, layout.bytes, fields_of(layout))
        for layer, layout in zip(layers, layouts, strict=True)
    ]
    if theirs != ours:
        raise ModelError(f"{path} holds slabs of another model than this one: choose another directory")
