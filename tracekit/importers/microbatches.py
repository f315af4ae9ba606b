"""Micro-batches of llama.cpp, as its graph runs them layer by layer: what its logs have in common.

At the last layer it computes only the tokens whose output is asked for: those before them have no routing there.
"""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.sequences import ABSENT


class Groups:
    """What each layer of each micro-batch chose, in order: the layer, and the ids of all its tokens, flat in `ids`."""

    def __init__(self, ids: "array[int] | NDArray[Any]") -> None:
        self.ids = ids
        self.layers = array("i")
        self.starts = array("q")
        self.ends = array("q")

    def add(self, layer: int, start: int, end: int) -> None:
        """One more group, whose ids are those from `start` to before `end`."""
        self.layers.append(layer)
        self.starts.append(start)
        self.ends.append(end)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Ids of each group."""
        return np.frombuffer(self.ends, np.int64) - np.frombuffer(self.starts, np.int64)

    def cut(self, count: int) -> None:
        """Leave out all groups but the first `count`."""
        del self.layers[count:], self.starts[count:], self.ends[count:]


def tokens_of(
    source: Path, name: str, groups: Groups, layers: list[int], top_k: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The choices [tokens, layers, k] of one request, ABSENT where a layer has none, and each token's micro-batch.

    Raises ImportFormatError where a micro-batch lacks a layer, or layers have other numbers of tokens.
    """
    whole, of_layer = len(layers), np.array(groups.layers)
    odd = of_layer != np.resize(np.array(layers), len(of_layer))
    if len(groups) % whole or odd.any():
        at = int(odd.argmax()) if odd.any() else len(groups) - 1
        raise ImportFormatError(
            f"{source}: {name}, micro-batch {at // whole} lacks layer {layers[at % whole]} "
            "(truncated, or rows were dropped); record again"
        )
    sizes = groups.sizes.reshape(-1, whole)  # [micro-batches, layers]
    broken = (sizes % top_k != 0).any(axis=1)
    if broken.any():
        at = int(broken.argmax())
        raise ImportFormatError(
            f"{source}: {name}, micro-batch {at} has {sizes[at].max()} experts at a layer, not a "
            f"multiple of top-{top_k}: truncated, or --top-k is wrong"
        )
    tokens = sizes[:, 0] // top_k
    uneven = (sizes[:, :-1] != sizes[:, :1]).any(axis=1) | (sizes[:, -1] > sizes[:, 0])
    if uneven.any():
        at = int(uneven.argmax())
        raise ImportFormatError(
            f"{source}: {name}, micro-batch {at}: layers have {sizes[at].min() // top_k} to "
            f"{sizes[at].max() // top_k} tokens: rows were dropped; record again"
        )
    ids = np.asarray(groups.ids)
    narrow = not len(ids) or (ids.min() >= -(2**15) and ids.max() < 2**15)
    experts = np.full((int(tokens.sum()), whole, top_k), ABSENT, np.int16 if narrow else np.int32)
    end = np.cumsum(tokens)
    for group, (start, stop) in enumerate(zip(groups.starts, groups.ends, strict=True)):
        last = int(end[group // whole])
        experts[last - (stop - start) // top_k : last, group % whole] = ids[start:stop].reshape(-1, top_k)
    return experts, np.repeat(np.arange(len(tokens)), tokens)
