"""What routing policies do to a token's choice, as functions that compiled code may call."""

import numpy as np

from policies.fields import Numbers
from tracekit.rows import UNUSED


def mass(ids: np.ndarray, weights: np.ndarray) -> float:
    """The weights of the choice, added up in order of slots."""
    total = 0.0
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            total += weights[i]
    return total


def chosen(ids: np.ndarray) -> int:
    """How many experts are chosen."""
    count = 0
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            count += 1
    return count


def drop(ids: np.ndarray, weights: np.ndarray, slot: int) -> None:
    """The choice in `slot` is skipped."""
    ids[slot] = UNUSED
    weights[slot] = 0.0


def renormalise(ids: np.ndarray, weights: np.ndarray, total: float) -> None:
    """Scale the weights of the choice so that they add up to `total` again; nothing if they add up to nothing."""
    now = mass(ids, weights)
    if now != 0.0:
        for i in range(len(ids)):
            if ids[i] != UNUSED:
                weights[i] = weights[i] * total / now


def heaviest(ids: np.ndarray, weights: np.ndarray, slot: int) -> int:
    """The place of a choice in descending order of weights, ties by slot: 0 for the heaviest."""
    place = 0
    for i in range(len(ids)):
        if ids[i] != UNUSED and (weights[i] > weights[slot] or (weights[i] == weights[slot] and i < slot)):
            place += 1
    return place


def logit_range(logits: np.ndarray) -> float:
    """The largest logit less the smallest, of those that are finite."""
    low = np.inf
    high = -np.inf
    for i in range(len(logits)):
        if np.isfinite(logits[i]):
            low = min(low, logits[i])
            high = max(high, logits[i])
    return high - low if high > low else 0.0


def least_logit(ids: np.ndarray, logits: np.ndarray) -> float:
    """The smallest logit of what is chosen; infinity if nothing is."""
    least = np.inf
    for i in range(len(ids)):
        if ids[i] != UNUSED:
            least = min(least, logits[ids[i]])
    return least


def is_chosen(ids: np.ndarray, expert: int) -> bool:
    """Whether the expert is in the choice."""
    found = False
    for i in range(len(ids)):
        found = found or ids[i] == expert
    return found


def best_present(ids: np.ndarray, logits: np.ndarray, present: np.ndarray) -> int:
    """The expert with the largest logit that is there and not chosen, ties by number; -1 if there is none."""
    best = -1
    for expert in range(len(logits)):
        if (
            present[expert] > 0
            and np.isfinite(logits[expert])
            and (best < 0 or logits[expert] > logits[best])
            and not is_chosen(ids, expert)
        ):
            best = expert
    return best


def best_left(ids: np.ndarray, logits: np.ndarray, place: Numbers[int], count: int) -> int:
    """The expert with the largest logit that has one of the first `count` places and is not chosen, ties by number; -1
    if there is none."""
    best = -1
    for expert in range(len(logits)):
        if (
            place[expert] < count
            and np.isfinite(logits[expert])
            and (best < 0 or logits[expert] > logits[best])
            and not is_chosen(ids, expert)
        ):
            best = expert
    return best
