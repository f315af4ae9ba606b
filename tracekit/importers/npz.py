"""Routing as plain arrays in a NumPy .npz file: what any engine can write with `numpy.savez_compressed`.

Required:
    experts            integers [tokens, layers, k]; 65535 marks an unused slot
Optional, a value per token ([tokens]); shown with what is assumed when absent:
    request            0: one request
    step               each token its own forward pass; must not decrease
    position           the token's place within its request
    phase              1: decode (0 is prefill)
    token_id           -1: unknown
Optional otherwise:
    weights            floats [tokens, layers, k]; absent
    expert_bytes       bytes of one expert, one number or [layers]; unknown
    experts_per_layer  one number or [layers]; the largest id seen plus one, for every layer
Nothing else may be in the file, and nothing in it may be pickled.
"""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError, did_you_mean
from tracekit.importers import Imported
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, Manifest, ModelInfo
from tracekit.rows import DECODE, UNUSED
from tracekit.shards import installed_memory

_PER_TOKEN = ("request", "step", "position", "phase", "token_id")
_KNOWN = ("experts", "weights", "expert_bytes", "experts_per_layer", *_PER_TOKEN)
_BOMB_BYTES = 256 << 20
_BOMB_RATIO = 200  # 64-bit expert ids of real routing deflate by 10 to 20


def read(source: Path) -> Imported:
    """Read the arrays, see the module's text; ImportFormatError when they are not what it says."""
    arrays = _load(source)
    if "experts" not in arrays:
        raise ImportFormatError(f"{source} has no array 'experts' (it has: {', '.join(sorted(arrays)) or 'none'})")
    experts = arrays.pop("experts")
    if experts.ndim != 3 or experts.size == 0 or experts.dtype.kind not in "iu":
        found = f"{experts.dtype} {list(experts.shape)}"
        raise ImportFormatError(f"{source}: experts is {found}, expected integers [tokens, layers, k]")
    tokens, layers, top_k = experts.shape
    if layers > MAX_LAYERS or top_k > MAX_TOP_K:
        raise ImportFormatError(f"{source}: experts has {layers} layers of {top_k} slots, too many for a model")
    per_layer, notes = _experts_per_layer(source, arrays, experts)
    manifest = Manifest(
        source="import:npz",
        model=ModelInfo(id=source.stem),
        moe_layers=list(range(layers)),
        model_layers=layers,
        experts_per_layer=per_layer,
        top_k=top_k,
        expert_bytes=_per_layer(source, arrays, "expert_bytes", layers),
        notes=notes,
    )
    request = arrays.get("request", np.zeros(tokens, dtype=np.int64))
    if request.shape != (tokens,):
        raise ImportFormatError(f"{source}: request has shape {list(request.shape)}, expected [{tokens}]")
    columns: dict[str, NDArray[Any]] = {
        "step": np.arange(tokens),
        "position": _place_within(request),
        "phase": np.full(tokens, DECODE),
        "token_id": np.full(tokens, -1),
        "request": request,
    }
    return Imported(manifest, columns | arrays | {"experts": experts})


def _experts_per_layer(
    source: Path, arrays: dict[str, NDArray[Any]], experts: NDArray[Any]
) -> tuple[list[int], list[str]]:
    given = _per_layer(source, arrays, "experts_per_layer", experts.shape[1])
    if given:
        return given, []
    largest = int(experts.max(where=experts != UNUSED, initial=0))
    if largest >= MAX_EXPERTS:
        raise ImportFormatError(f"{source}: experts holds the id {largest}, ids must be below {MAX_EXPERTS}")
    number = max(largest + 1, experts.shape[2])
    return [number] * experts.shape[1], [f"experts per layer taken from the largest id: {number}"]


def _per_layer(source: Path, arrays: dict[str, NDArray[Any]], name: str, layers: int) -> list[int]:
    values = arrays.pop(name, None)
    if values is None:
        return []
    if values.dtype.kind not in "iu" or values.shape not in ((), (layers,)):
        found = f"{values.dtype} {list(values.shape)}"
        raise ImportFormatError(f"{source}: {name} is {found}, expected one integer or [{layers}]")
    numbers: list[int] = np.broadcast_to(values, (layers,)).tolist()
    return numbers


def _place_within(request: NDArray[Any]) -> NDArray[np.int64]:
    """How many earlier tokens belong to the same request, [tokens]."""
    order = np.argsort(request, kind="stable")
    ordered = request[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    place = np.empty(len(request), dtype=np.int64)
    place[order] = np.arange(len(request)) - np.repeat(starts, np.diff(np.append(starts, len(request))))
    return place


def _load(source: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            _check_members(source, members)
            return {member.filename.removesuffix(".npy"): _array(source, archive, member) for member in members}
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ValueError,
        SyntaxError,  # NumPy parses headers as Python literals, tokenising them where that fails
        tokenize.TokenError,
        EOFError,
        NotImplementedError,  # an unknown compression method
        RuntimeError,  # an encrypted member
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportFormatError(f"{source} is not a readable .npz file: {first[:200]}") from None


def _check_members(source: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename.removesuffix(".npy") for member in members]
    if len(set(names)) != len(names):
        raise ImportFormatError(f"{source} holds the same array twice")
    for member, name in zip(members, names, strict=True):
        if name not in _KNOWN or not member.filename.endswith(".npy"):
            raise ImportFormatError(
                f"{source} holds an unknown array {name[:60]!r} (known: {', '.join(_KNOWN)})"
                f"{did_you_mean(name[:60], _KNOWN)}"
            )
    size = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if size > installed_memory() // 4 or (size > _BOMB_BYTES and size > _BOMB_RATIO * packed):
        raise ImportFormatError(f"{source} unpacks {packed >> 10} KiB to {size >> 20} MiB: refused as too large")


def _array(source: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ImportFormatError(f"{source}: {name} is of .npy version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        start = file.tell()
    if dtype.hasobject or dtype.kind not in "iufb":
        raise ImportFormatError(f"{source}: {name} holds {dtype}, expected numbers")
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    if min(shape, default=0) < 0 or start + nbytes != member.file_size:
        raise ImportFormatError(f"{source}: {name} claims shape {list(shape)[:8]}, the file does not hold that")
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(np.uint8) if dtype.kind == "b" and name == "phase" else array
