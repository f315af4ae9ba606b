"""Counting where experts have two copies: what each tier served, and the bytes that were copied of each."""

from collections.abc import Sequence

import numpy as np
from numba import njit

from policies.cache_spec import CacheSpec
from policies.events import HIT_PREFETCHED, KEY_MASK, KIND_SHIFT, LOAD, PREFETCH

COUNTED = ("lookups", "hits", "prefetches", "bytes")
"""What is counted of each tier."""
LOOKUPS, HITS, PREFETCHES, BYTES = range(4)
NO_COPIES = np.zeros((0, 0, 0), np.int64)


def tally_copies(
    code: np.ndarray,
    start: np.ndarray,
    phases: np.ndarray,
    spec: CacheSpec,
    sizes: Sequence[int],
    kinds: np.ndarray,
    loads: np.ndarray,
    loaded: np.ndarray,
    copies: np.ndarray,
) -> None:
    """Add up as `engine.replay.passes.tally` does; also `copies` i64 [steps, tiers, what] by tier.

    `sizes` are the bytes of an expert of each layer, those of the low copies behind; none: unknown.
    """
    bytes_of = np.array(sizes or (0,) * (2 * spec.layers), np.int64)
    _tally(code, start, phases, spec.layers, spec.experts, bytes_of, kinds, loads, loaded, copies)


@njit(cache=True, nogil=True)
def _tally(  # type: ignore[no-untyped-def]
    code, start, phases, layers, experts, bytes_of, kinds, loads, loaded, copies
):
    for visit in range(len(start) - 1):
        step, layer = visit // layers, visit % layers
        for e in range(start[visit], start[visit + 1]):
            kind, of_copy = code[e] >> KIND_SHIFT, (code[e] & KEY_MASK) // experts
            tier = of_copy // layers
            kinds[step, kind] += 1
            if kind < PREFETCH:
                copies[step, tier, LOOKUPS] += 1
                copies[step, tier, HITS] += kind <= HIT_PREFETCHED
                loads[phases[step], layer] += LOAD <= kind < PREFETCH
            if LOAD <= kind <= PREFETCH:
                copies[step, tier, PREFETCHES] += kind == PREFETCH
                copies[step, tier, BYTES] += bytes_of[of_copy]
                loaded[step] += bytes_of[of_copy]
