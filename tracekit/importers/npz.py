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

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers import Imported, ImportOptions
from tracekit.importers.arrays import read_npz
from tracekit.importers.slots import without_slots
from tracekit.manifest import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, Manifest, ModelInfo
from tracekit.rows import DECODE, UNUSED

_PER_TOKEN = ("request", "step", "position", "phase", "token_id")
_KNOWN = ("experts", "weights", "expert_bytes", "experts_per_layer", *_PER_TOKEN)


def read(source: Path, options: ImportOptions) -> Imported:
    """Read the arrays, see the module's text; ImportFormatError when they are not what it says."""
    arrays = read_npz(source, _KNOWN)
    if "phase" in arrays and arrays["phase"].dtype.kind == "b":
        arrays["phase"] = arrays["phase"].astype(np.uint8)
    if "experts" not in arrays:
        raise ImportFormatError(f"{source} has no array 'experts' (it has: {', '.join(sorted(arrays)) or 'none'})")
    experts = arrays.pop("experts")
    if experts.ndim == 3:
        experts = without_slots(source, experts, options.drop_slot)
        if arrays.get("weights") is not None and arrays["weights"].ndim == 3:
            arrays["weights"] = without_slots(source, arrays["weights"], options.drop_slot, "weights")
    if experts.ndim != 3 or experts.size == 0 or experts.dtype.kind not in "iu":
        found = f"{experts.dtype} {list(experts.shape)}"
        raise ImportFormatError(f"{source}: experts is {found}, expected integers [tokens, layers, k]")
    tokens, layers, top_k = experts.shape
    if layers > MAX_LAYERS or top_k > MAX_TOP_K:
        raise ImportFormatError(f"{source}: experts has {layers} layers of {top_k} slots, too many for a model")
    per_layer, notes = _experts_per_layer(source, arrays, experts, options.experts)
    manifest = Manifest(
        source="import:npz",
        model=ModelInfo(id=options.model or source.stem),
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
    source: Path, arrays: dict[str, NDArray[Any]], experts: NDArray[Any], told: int | None
) -> tuple[list[int], list[str]]:
    given = _per_layer(source, arrays, "experts_per_layer", experts.shape[1])
    if given and told is not None:
        raise ImportFormatError(f"{source} says its experts_per_layer itself: leave --experts out")
    if given or told is not None:
        return given or [told or 0] * experts.shape[1], []
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
