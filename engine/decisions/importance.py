"""Importance: what rules of precision tiers read of a visit, from the gate's weights as traces hold them."""

import numpy as np
from numba import njit

from policies.tiered_cache import Importance


def importance_of(ids: np.ndarray, weights: np.ndarray, demand: list[int], num_experts: int) -> Importance:
    """Of one visit: ids u16 and weights f16 [tokens, k], where ids of `num_experts` or more do not count."""
    starts = np.array([0, len(ids)], np.int64)
    keys, ends = np.array(demand, np.uint32), np.array([0, len(demand)], np.int64)
    share, rank = importances(ids[:, None], weights[:, None], starts, num_experts, keys, ends)
    return Importance(share.tolist(), rank.tolist())


def importances(
    experts: np.ndarray,
    weights: np.ndarray,
    steps: np.ndarray,
    num_experts: int,
    keys: np.ndarray,
    start: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each lookup `keys` [lookups], visit by visit from `start` on: f64 and i64 [lookups].

    The largest share of a token's gate weight, over all of the token's choices, that the expert has in the visit, and
    its best place among a token's choices by weight (0 is the heaviest; equal weights: in order of slots). `experts`
    u16 and `weights` f16 are [rows, layers, k], `steps` [steps + 1] the rows of each step.
    """
    share, rank = np.zeros(len(keys)), np.zeros(len(keys), np.int64)
    _importances(experts, weights.astype(np.float32), steps, num_experts, keys, start, share, rank)
    return share, rank


@njit(cache=True, nogil=True)
def _importances(  # type: ignore[no-untyped-def]
    experts, weights, steps, num_experts, keys, start, share, rank
):
    layers, k = experts.shape[1], experts.shape[2]
    index = np.full(num_experts, -1, np.int64)
    for visit in range(len(start) - 1):
        step, layer = visit // layers, visit % layers
        for i in range(start[visit], start[visit + 1]):
            index[keys[i] % num_experts] = i
            rank[i] = k
        for row in range(steps[step], steps[step + 1]):
            total = 0.0
            for slot in range(k):
                if experts[row, layer, slot] < num_experts:
                    total += np.float64(weights[row, layer, slot])
            for slot in range(k):
                if experts[row, layer, slot] >= num_experts:
                    continue
                i, own = index[experts[row, layer, slot]], weights[row, layer, slot]
                if total > 0:
                    share[i] = max(share[i], np.float64(own) / total)
                place = 0
                for other in range(k):
                    if experts[row, layer, other] < num_experts:
                        weight = weights[row, layer, other]
                        place += weight > own or (weight == own and other < slot)
                rank[i] = min(rank[i], place)
