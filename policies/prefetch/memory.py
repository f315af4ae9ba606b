"""Helpers for prefetchers: one remembered demand per layer, and the best of a layer's scores."""

import numpy as np

from policies.fields import Numbers


def remember(memory: Numbers[int], layer: int, experts: int, demand: np.ndarray) -> None:
    """Keep the layer's demand (keys) in `memory` [keys]; -1 behind the last, what comes after it means nothing."""
    base = layer * experts
    for i in range(len(demand)):
        memory[base + i] = demand[i]
    if len(demand) < experts:
        memory[base + len(demand)] = -1


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
    base, count, least = layer * experts, 0, 0
    for key in range(base, base + experts):
        if score[key] <= least:  # no larger than the last of a full ranking, or nothing
            continue
        if count < len(out):
            count += 1
        if count == 0:
            break
        place = count - 1
        while place > 0 and score[out[place - 1]] < score[key]:
            out[place] = out[place - 1]
            place -= 1
        out[place] = key
        if count == len(out):
            least = score[out[count - 1]]
    for i in range(count):
        score[out[i]] = 0
    return count
