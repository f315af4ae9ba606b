"""What a model's gates chose on a text, and how evenly and how steadily they chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from experiments.demo.stdlib_text import Domain

Experts = npt.NDArray[np.int64]  # [tokens, layers, top_k]


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Routing of one layer. Overlaps and distances are shares from 0 to 1."""

    load_entropy: float  # of the experts' loads, over its maximum log(experts); 1 is perfectly even
    max_over_mean_load: float
    unused_experts: int
    overlap: float  # share of a token's experts that the next token uses too
    chance_overlap: float  # the same after shuffling the tokens
    domain_distance: float  # total variation between two domains' loads, mean over pairs


def describe(windows: Mapping[Domain, list[Experts]], experts: int, seed: int = 0) -> list[LayerRouting]:
    """Each layer's routing, from the experts [tokens, layers, top_k] of each domain's contiguous windows."""
    every = [window for group in windows.values() for window in group]
    everything = np.concatenate(every)
    shuffled = np.random.default_rng(seed).permutation(everything)
    loads = {domain: _loads(np.concatenate(group), experts) for domain, group in windows.items()}
    total = _loads(everything, experts)  # [layers, experts]
    following = np.concatenate([_shared(window) for window in every]).mean(axis=0)
    chance = _shared(shuffled).mean(axis=0)
    distances = np.mean([np.abs(a - b).sum(axis=1) / 2 for a, b in combinations(loads.values(), 2)], axis=0)
    result = []
    for layer, load in enumerate(total):
        used = load[load > 0]
        result.append(
            LayerRouting(
                load_entropy=float(-(used * np.log(used)).sum() / np.log(experts)),
                max_over_mean_load=float(load.max() * experts),
                unused_experts=int((load == 0).sum()),
                overlap=float(following[layer]),
                chance_overlap=float(chance[layer]),
                domain_distance=float(distances[layer]),
            )
        )
    return result


def _loads(chosen: Experts, experts: int) -> npt.NDArray[np.float64]:
    """Each expert's share of a layer's choices [layers, experts]."""
    counts = [np.bincount(chosen[:, layer].ravel(), minlength=experts) for layer in range(chosen.shape[1])]
    loads: npt.NDArray[np.float64] = np.stack(counts) / (chosen.shape[0] * chosen.shape[2])
    return loads


def _shared(chosen: Experts) -> npt.NDArray[np.float64]:
    """The share of each token's experts that the next token uses too [tokens - 1, layers]."""
    same = chosen[:-1, :, :, None] == chosen[1:, :, None, :]  # [tokens - 1, layers, top_k, top_k]
    return np.asarray(same.any(axis=-1).mean(axis=-1), dtype=np.float64)
