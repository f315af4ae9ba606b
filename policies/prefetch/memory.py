"""Helpers for prefetchers: one remembered demand per layer, and the best of a layer's scores."""

import numpy as np

from policies.fields import Numbers


def remember(memory: Numbers[int], layer: int, experts: int, demand: np.ndarray) -> None:
    """Keep the layer's demand (keys) in `memory` [keys], padded with -1."""
    base = layer * experts
    for i in range(experts):
        memory[base + i] = demand[i] if i < len(demand) else -1


def recall(memory: Numbers[int], layer: int, experts: int, out: np.ndarray) -> int:
    """Copy the remembered demand of a layer to `out`; returns how many keys."""
    count = 0
    base = layer * experts
    while count < experts and count < len(out) and memory[base + count] >= 0:
        out[count] = memory[base + count]
        count += 1
    return count


def best(score: Numbers[int], layer: int, experts: int, out: np.ndarray) -> int:
    """Write the layer's keys with the largest positive `score` [keys] to `out`, ties by id; empties their scores.

    Returns how many.
    """
    base = layer * experts
    count = 0
    while count < len(out):
        chosen = base
        for key in range(base, base + experts):
            if score[key] > score[chosen]:
                chosen = key
        if score[chosen] <= 0:
            break
        out[count] = chosen
        score[chosen] = 0
        count += 1
    return count
