"""What a miss may be: where a missing expert is computed, and how many of them the cache takes in at a step.

Fixed before the first visit or counted in whole numbers: nothing here looks at a clock either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policies.cache_state import Batch, CacheState

COPY, ON_HOST, SPLIT, AUTO = range(4)
"""Where a miss is computed: on the device, where it lies, so many of them here and so many there, or by its tokens."""
WHERE = {"copy": COPY, "host": ON_HOST, "split": SPLIT, "auto": AUTO}
"""By a plan's words."""
PARTS = 1_000_000
"""A share is a whole number of so many parts: no rounding of products then depends on who computes."""
NO_LIMIT = 1 << 40


class Misses(NamedTuple):
    """How misses are served. `decide` has None where each is copied, and kept if there is room."""

    where: int  # one of the above
    copied: int  # of SPLIT: the share of a visit's misses that are copied, in PARTS
    most_tokens: np.ndarray  # i64 [layers], of AUTO: up to so many tokens of an expert are the host's
    per_step: int  # experts that may be taken in at a step
    even: bool  # each layer has its whole-numbered share of these, not who comes first
    left: np.ndarray  # i64 [1]: how many may still be taken in
    hosted: np.ndarray  # i64 [experts]: scratch, by number of the visit's misses: 1 if the host computes it


def misses_of(
    where: str,
    share: int | None,
    most_tokens: Sequence[int],
    per_step: int | None,
    even: bool,
    layers: int,
    experts: int,
) -> Misses:
    """The state before the first visit."""
    limit = NO_LIMIT if per_step is None else per_step
    return Misses(
        where=WHERE[where],
        copied=PARTS if share is None else share,
        most_tokens=np.array(most_tokens or [0] * layers, np.int64),
        per_step=limit,
        even=even and per_step is not None,
        left=np.array([limit], np.int64),
        hosted=np.zeros(experts + 1, np.int64),
    )


def refill(misses: Misses, layer: int, layers: int) -> None:
    """A step begins at layer 0: what was not used at the last one is lost. Remainders go from layer to layer."""
    if misses.even:
        misses.left[0] = misses.per_step * (layer + 1) // layers - misses.per_step * layer // layers
    elif layer == 0:
        misses.left[0] = misses.per_step


def place_misses(misses: Misses, cache: CacheState, batch: Batch, layer: int, missing: int) -> None:
    """Say of each of the visit's misses, in order of first reference, whether the host computes it."""
    copied = (2 * missing * misses.copied + PARTS) // (2 * PARTS)  # halves are rounded up
    for m in range(missing):
        hosted = misses.where == ON_HOST
        if misses.where == AUTO:
            hosted = batch.tokens[cache.missing[m]] <= misses.most_tokens[layer]
        elif misses.where == SPLIT:
            # Copied are those with the most tokens, of equal ones the first.
            mine = batch.tokens[cache.missing[m]]
            before = 0
            for other in range(missing):
                its = batch.tokens[cache.missing[other]]
                before += (its > mine) | ((its == mine) & (other < m))
            hosted = before >= copied
        misses.hosted[m] = hosted


def gate_total(batch: Batch, start: int, stop: int) -> float:
    """The gate weights of a visit, all added up in order of its demand; 0 where nobody reads them."""
    total = 0.0
    if len(batch.gate) > 0:
        for i in range(start, stop):
            total += batch.gate[i]
    return total


def gate_share(batch: Batch, i: int, total: float) -> float:
    """What one lookup has of that."""
    share = 0.0
    if total > 0.0:
        share = batch.gate[i] / total
    return share
