"""Slots that no gate chose: shared experts that an engine fuses into the routed ones, and what to do about them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.rows import UNUSED

_ENOUGH = 16  # tokens, and choices of each expert, below which what looks like a shared expert may be chance
_FUSED = 8  # shared experts of a layer, copies of one for each rank among them, at most
_PIECE = 1 << 20  # ids that are counted together
_GLANCE = 1 << 12  # rows that show most slots to be routed


def without_slots(
    source: Path, array: NDArray[np.generic], slots: tuple[int, ...], what: str = "choices"
) -> NDArray[np.generic]:
    """An array [tokens, layers, k] without these slots; ImportFormatError unless one of its slots is left."""
    top_k = array.shape[2]
    wrong = next((slot for slot in slots if not 0 <= slot < top_k), None)
    if wrong is not None:
        raise ImportFormatError(f"{source}: --drop-slot is {wrong}, {what} have slots 0 to {top_k - 1}")
    if len(set(slots)) == top_k:
        raise ImportFormatError(f"{source}: --drop-slot leaves no slot of {top_k}")
    return np.delete(array, list(slots), axis=2) if slots else array


def fused_slots(experts: NDArray[np.integer], above: int) -> list[int]:
    """The slots [tokens, layers, k] that hold ids from `above` on and no other; UNUSED and negative ids aside."""
    used = (experts >= 0) & (experts != UNUSED)
    return [
        slot
        for slot in range(experts.shape[2])
        if used[:, :, slot].any() and (experts[:, :, slot][used[:, :, slot]] >= above).all()
    ]


def shared_experts(experts: NDArray[np.integer], per_layer: list[int]) -> list[str]:
    """A note for each slot that always holds the same expert, or a few that no other slot ever does."""
    tokens, _, top_k = experts.shape
    if tokens < _ENOUGH or top_k < 2 or top_k >= min(per_layer) or (experts == experts[0]).all():
        return []
    notes = []
    for slot in range(top_k):
        if held := _held(experts, slot):
            notes.append(
                f"slot {slot} holds {held}: a shared expert or padding, which no gate chose; import with "
                f"--drop-slot {slot} to leave it out"
            )
    return notes or _everywhere(experts)


def _held(experts: NDArray[np.integer], slot: int) -> str:
    """What the slot holds, where that is no choice of a gate; else nothing."""
    for part in (experts[:_GLANCE], experts):
        column = part[:, :, slot]
        used = column != UNUSED
        held = np.unique(column[used])
        alone = _one_of_each_layer(column, used)
        if not len(held) or (len(held) > _FUSED and not alone):
            return ""
    if len(held) == 1:
        return f"expert {held[0]} in every row"
    if alone:
        return "one expert of each layer in every row"
    others = [experts[:, :, other] for other in range(experts.shape[2]) if other != slot]
    routed = max(int(other.max(where=other != UNUSED, initial=0)) for other in others)
    apart = int(held[0]) > routed and int(held[-1] - held[0]) == len(held) - 1
    if not apart or int(used.sum()) < _ENOUGH * len(held):
        return ""
    return f"experts {held[0]} to {held[-1]} and no other, which no other slot holds"


def _one_of_each_layer(column: NDArray[np.integer], used: NDArray[np.bool_]) -> bool:
    lowest = column.min(axis=0, where=used, initial=UNUSED)
    highest = column.max(axis=0, where=used, initial=0)
    return bool(((lowest == highest) | ~used.any(axis=0)).all()) and column.shape[1] > 1


def _everywhere(experts: NDArray[np.integer]) -> list[str]:
    """Experts that all choices share, in whatever slot."""
    layers = experts.shape[1]
    choices, chosen = 0, np.zeros(UNUSED + 1, np.int64)
    rows = max(1, _PIECE // (layers * experts.shape[2]))
    for first in range(0, len(experts), rows):
        part = experts[first : first + rows]
        choices += int((part != UNUSED).any(axis=2).sum())
        chosen += np.bincount(part.ravel(), minlength=UNUSED + 1)
    if choices < _ENOUGH * _ENOUGH or layers < 2:
        return []
    found = np.flatnonzero(chosen[:UNUSED] == choices)
    return [f"expert {expert} is in every choice, in changing slots: a shared expert" for expert in found.tolist()]
