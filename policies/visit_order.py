"""What one visit demands, as decisions need it: for visits that are decided one at a time."""

import numpy as np


def orders_of(ids: np.ndarray, experts: int) -> tuple[list[int], list[int]]:
    """The distinct experts of choices u16 [tokens, k], in (token, slot) order of first and of last reference.

    Ids of `experts` or more mark choices that do not count.
    """
    chosen = [expert for expert in ids.ravel().tolist() if expert < experts]
    if len(ids) == 1 and len(set(chosen)) == len(chosen):
        return chosen, chosen
    return list(dict.fromkeys(chosen)), list(dict.fromkeys(reversed(chosen)))[::-1]


def tokens_of(ids: np.ndarray, demand: list[int]) -> list[int]:
    """How many tokens chose each demanded expert; ids [tokens, k]."""
    if len(ids) == 1:
        return [1] * len(demand)
    counts = dict.fromkeys(demand, 0)
    for expert in ids.ravel().tolist():
        if expert in counts:
            counts[expert] += 1
    return [counts[expert] for expert in demand]


def weight_of(ids: np.ndarray, weights: np.ndarray, demand: list[int]) -> list[float]:
    """The weights of each demanded expert, added up in (token, choice) order; ids and weights [tokens, k]."""
    total = dict.fromkeys(demand, 0.0)
    for expert, weight in zip(ids.ravel().tolist(), weights.ravel().tolist(), strict=True):
        if expert in total:
            total[expert] += weight
    return [total[expert] for expert in demand]
