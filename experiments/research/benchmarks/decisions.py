"""Decisions per second of the compiled kernel, against cachetools and against a user's own policy file."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.load import LAYERS, SLOTS, batches, new_cache, routing
from policies.cache_state import Batch

STEPS, PEER_STEPS = 20_000, 200

USER_POLICY = Path(__file__).parents[3] / "policies" / "eviction" / "lru.py"


def run(policy: str, work: list[Batch]) -> None:
    """Decide all of `work` with a fresh cache."""
    cache = new_cache(policy)
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
    return [
        Row.of_rates(
            "LRU decisions, lookups/s, against cachetools", lookups / ours, keys[:PEER_STEPS].size / theirs, "-"
        ),
        Row.of_rates(
            "LRU from a user's file, lookups/s, against the built-in", lookups / user, lookups / builtin, ">= 0.9x"
        ),
    ]
