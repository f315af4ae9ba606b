"""Micro-batches of llama.cpp, as its graph runs them layer by layer: what its logs have in common.

At the last layer it computes only the tokens whose output is asked for: those before them have no routing there.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import ImportFormatError
from tracekit.importers.sequences import ABSENT

Groups = list[tuple[int, NDArray[Any]]]
"""Micro-batches in order: the layer, and the ids of all its tokens, flat."""


def tokens_of(
    source: Path, name: str, groups: Groups, layers: list[int], top_k: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The choices [tokens, layers, k] of one request, ABSENT where a layer has none, and each token's micro-batch.

    Raises ImportFormatError where a micro-batch lacks a layer, or layers have other numbers of tokens.
    """
    if len(groups) % len(layers) or any(layer != layers[at % len(layers)] for at, (layer, _) in enumerate(groups)):
        at = next((at for at, (layer, _) in enumerate(groups) if layer != layers[at % len(layers)]), len(groups) - 1)
        raise ImportFormatError(
            f"{source}: {name}, micro-batch {at // len(layers)} lacks layer {layers[at % len(layers)]} "
            "(truncated, or rows were dropped); record again"
        )
    blocks: list[NDArray[Any]] = []
    for at in range(0, len(groups), len(layers)):
        batch = groups[at : at + len(layers)]
        sizes = [len(ids) for _, ids in batch]
        if any(size % top_k for size in sizes):
            raise ImportFormatError(
                f"{source}: {name}, micro-batch {at // len(layers)} has {max(sizes)} experts at a layer, not a "
                f"multiple of top-{top_k}: truncated, or --top-k is wrong"
            )
        tokens = sizes[0] // top_k
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise ImportFormatError(
                f"{source}: {name}, micro-batch {at // len(layers)}: layers have {min(sizes) // top_k} to "
                f"{max(sizes) // top_k} tokens: rows were dropped; record again"
            )
        block = np.full((tokens, len(layers), top_k), ABSENT, np.int32)
        for layer, (_, ids) in enumerate(batch):
            block[tokens - len(ids) // top_k :, layer] = ids.reshape(-1, top_k)
        blocks.append(block)
    return np.concatenate(blocks), np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
