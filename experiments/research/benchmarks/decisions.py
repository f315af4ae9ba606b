"""Decisions per second of the compiled kernel, against cachetools and against a user's own policy file."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from experiments.research.benchmarks.alternating import Row, medians
from policies.cache import CacheSpec, ExpertCache
from policies.cache_state import Batch

LAYERS, EXPERTS, TOP_K, SLOTS = 48, 128, 8, 32
STEPS, PEER_STEPS, CHUNK = 20_000, 200, 100

USER_POLICY = Path(__file__).parents[3] / "policies" / "eviction" / "lru.py"


def routing(steps: int, seed: int = 0) -> np.ndarray:
    """Keys i32 [steps, layers, top_k]: independent draws, popularity rank^-0.8 in each layer. A load, no model."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, EXPERTS + 1) ** 0.8
    weights = np.log(np.stack([rng.permutation(popularity) for _ in range(LAYERS)])).astype(np.float32)
    keys = np.empty((steps, LAYERS, TOP_K), np.int32)
    for step in range(steps):
        scores = rng.gumbel(size=(LAYERS, EXPERTS)).astype(np.float32) + weights
        keys[step] = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
    return keys + (np.arange(LAYERS, dtype=np.int32) * EXPERTS)[None, :, None]


def batches(keys: np.ndarray) -> list[Batch]:
    """The routing as batches of whole steps."""
    none = np.empty(0)
    made = []
    for first in range(0, len(keys), CHUNK):
        part = keys[first : first + CHUNK]
        visits = len(part) * LAYERS
        flat = np.ascontiguousarray(part.reshape(-1)).astype(np.uint32)
        start = np.arange(visits + 1, dtype=np.int64) * TOP_K
        layer = np.tile(np.arange(LAYERS, dtype=np.int32), len(part))
        made.append(Batch(layer, start, flat, flat, none, none, np.full((visits, 1), -1, np.int32)))
    return made


def run(policy: str, work: list[Batch]) -> None:
    """Decide all of `work` with a fresh cache."""
    spec = CacheSpec(LAYERS, EXPERTS, (SLOTS,) * LAYERS, np.ones(LAYERS * EXPERTS, np.int64), policy)
    cache = ExpertCache(spec)
    for batch in work:
        cache.run(batch)


def run_cachetools(keys: np.ndarray) -> None:
    """The same lookups in one cachetools LRUCache per layer."""
    caches: list[LRUCache[int, bool]] = [LRUCache(SLOTS) for _ in range(LAYERS)]
    for step in keys.tolist():
        for cache, visit in zip(caches, step, strict=True):
            for key in visit:
                if key not in cache:
                    cache[key] = True
                else:
                    cache[key]


def rows() -> list[Row]:
    """LRU against cachetools, and a user's copy of the LRU file against the built-in."""
    keys = routing(STEPS)
    work = batches(keys)
    lookups = keys.size
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "mine.py"
        mine.write_bytes(USER_POLICY.read_bytes())
        own = f"{mine}:Lru"
        for policy in ("lru", own):
            run(policy, work[:1])
        ours, theirs = medians(partial(run, "lru", work), partial(run_cachetools, keys[:PEER_STEPS]))
        builtin, user = medians(partial(run, "lru", work), partial(run, own, work))
    peer_lookups = keys[:PEER_STEPS].size
    return [
        Row(
            "LRU decisions, lookups/s, against cachetools",
            f"{lookups / ours / 1e6:.0f} M/s",
            f"{peer_lookups / theirs / 1e6:.2f} M/s",
            (lookups / ours) / (peer_lookups / theirs),
            "-",
        ),
        Row(
            "LRU from a user's file, lookups/s, against the built-in",
            f"{lookups / user / 1e6:.0f} M/s",
            f"{lookups / builtin / 1e6:.0f} M/s",
            builtin / user,
            ">= 0.9x",
        ),
    ]
