"""Synthetic routing with stated statistics: per-layer LRU hit ratios and speculative recall, and nothing else.

No Mixtral routing is at hand, but what Table 2 depends on is known of it: how often a per-layer LRU cache of two or
four experts hits, and how often the next layer's gate guesses right. This draws routing that has exactly these.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import TraceError
from tracekit.manifest import Manifest, ModelInfo
from tracekit.rows import DECODE
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


def position_shares(hit_ratio: Mapping[int, float], experts: int, top_k: int) -> NDArray[np.float64]:
    """How often the expert at each place of the recency order (most recent first) is chosen, [experts], sum `top_k`.

    An LRU cache of k >= top_k experts holds the first k of the order, so the shares up to k sum to top_k times the
    hit ratio at k (Mattson et al. 1970); between the given sizes they are spread evenly.

    Raises TraceError when no routing has these hit ratios.
    """
    ends = [0, *sorted(hit_ratio), experts]
    found = [0.0, *(hit_ratio[k] for k in sorted(hit_ratio)), 1.0]
    if min(hit_ratio) < top_k or max(hit_ratio) >= experts:
        raise TraceError(f"hit ratios are given for cache sizes from {top_k} (top-k) to {experts - 1}")
    shares = np.concatenate(
        [
            np.full(stop - start, (high - low) * top_k / (stop - start))
            for start, stop, low, high in zip(ends, ends[1:], found, found[1:], strict=False)
        ]
    )
    if (shares < 0).any() or (shares > 1).any():
        raise TraceError(f"no top-{top_k} routing of {experts} experts has LRU hit ratios {dict(hit_ratio)}")
    return shares


def draw_experts(
    rng: np.random.Generator, tokens: int, layers: int, shares: NDArray[np.float64], top_k: int
) -> NDArray[np.uint16]:
    """Chosen experts [tokens, layers, top_k] whose places in each layer's recency order follow `shares`.

    Systematic sampling over a random order gives every place exactly its share, without replacement (Madow 1949).
    """
    experts = len(shares)
    recency = np.argsort(rng.random((layers, experts)), axis=1)
    chosen = np.empty((tokens, layers, top_k), np.uint16)
    rows = np.arange(layers)[:, None]
    for token in range(tokens):
        order = np.argsort(rng.random((layers, experts)), axis=1)
        ends = np.cumsum(shares[order], axis=1)
        ends[:, -1] = top_k  # rounding must not leave the last point behind the end
        points = rng.random((layers, 1)) + np.arange(top_k)
        places = order[rows, (points[:, :, None] >= ends[:, None, :]).sum(axis=2)]
        chosen[token] = recency[rows, places]
        later = np.ones((layers, experts), bool)
        later[rows, places] = False
        recency = np.concatenate([chosen[token], recency[later].reshape(layers, -1)], axis=1)
    return chosen


def draw_guesses(
    rng: np.random.Generator, experts: NDArray[np.uint16], num_experts: int, recall: Mapping[int, float]
) -> NDArray[np.float16]:
    """Lookahead logits [tokens, layers - 1, num_experts] of top-2 routing with the given recall by number of guesses.

    The first guess is one of the two needed experts with probability 2 * recall[1], the second the other one with
    probability 2 * (recall[2] - recall[1]); wrong guesses are even among the experts that are not needed.
    """
    needed = experts[:, 1:].astype(np.int64)
    right = rng.random(needed.shape) < np.array([2 * recall[1], 2 * (recall[2] - recall[1])])
    noise = rng.random((*needed.shape[:2], num_experts))
    np.put_along_axis(noise, needed, 2.0, axis=2)
    wrong = np.argsort(noise, axis=2)[:, :, :2]
    guesses = np.where(right, needed, wrong)
    logits = np.zeros(noise.shape, np.float16)
    np.put_along_axis(logits, guesses, np.array([2.0, 1.0], np.float16), axis=2)
    return logits


def write_routing(
    path: Path,
    *,
    hit_ratio: Mapping[int, float],
    recall: Mapping[int, float],
    tokens: int,
    layers: int,
    experts: int,
    seed: int,
) -> Trace:
    """Write top-2 decode routing of one request with these statistics as the trace `path`, and open it."""
    rng = np.random.default_rng(seed)
    chosen = draw_experts(rng, tokens, layers, position_shares(hit_ratio, experts, 2), 2)
    manifest = Manifest(
        source="synthetic",
        model=ModelInfo(id="synthetic/stated-hit-ratios", family="mixtral"),
        moe_layers=list(range(layers)),
        model_layers=layers,
        experts_per_layer=[experts] * layers,
        top_k=2,
        seed=seed,
        notes=[f"LRU hit ratios {dict(hit_ratio)}, speculative recall {dict(recall)} by construction"],
    )
    order = np.arange(tokens)
    with TraceWriter(path, manifest) as writer:
        writer.append(
            step=order,
            request=0,
            position=order,
            phase=DECODE,
            experts=chosen,
            lookahead={1: draw_guesses(rng, chosen, experts, recall)},
        )
    return Trace.open(path)
