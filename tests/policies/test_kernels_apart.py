"""Kernels that were compiled in different processes stay apart when one process loads them all."""

import os
import subprocess
import sys
from pathlib import Path

PAIRS = ("lfu", "none"), ("lfu-perfect", "none"), ("lfu", "oracle"), ("lfu-perfect", "oracle")

# Policies whose states have the same fields and types, so that only their names tell their kernels apart.
PROGRAM = """
import sys
import numpy as np
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.cache_state import Batch

rng = np.random.default_rng(0)
steps, layers, experts, k = 200, 2, 8, 2
chosen = np.argsort(rng.random((steps * layers, experts)) ** np.arange(1, experts + 1), axis=1)[:, :k].astype(np.int32)
layer = np.tile(np.arange(layers, dtype=np.int32), steps)
keys = (chosen + layer[:, None] * experts).astype(np.int32)
hint = np.full((len(layer), k), -1, np.int32)
hint[:-1][layer[:-1] == 0] = keys[1:][layer[:-1] == 0]
none = np.empty(0)
flat = keys.ravel().astype(np.uint32)
batch = Batch(layer, np.arange(len(layer) + 1, dtype=np.int64) * k, flat, flat, none, none, hint)
for pair in sys.argv[1:]:
    eviction, prefetch = pair.split("/")
    spec = CacheSpec(layers, experts, (3, 3), np.ones(layers * experts, np.int64), eviction, prefetch=prefetch)
    compiled, interpreted = (ExpertCache(spec, compiled=way).run(batch) for way in (True, False))
    assert compiled.rows() == interpreted.rows(), pair
    print(pair, int((compiled.kind <= 2).sum()))
"""


def test_kernels_from_different_processes_stay_apart(tmp_path: Path) -> None:
    environment = {**os.environ, "TRACEKIT_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    names = [f"{eviction}/{prefetch}" for eviction, prefetch in PAIRS]
    for pairs in ([names[0]], [names[1]], [names[2]], [names[3]], names, names[::-1]):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *pairs], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert len({line.split()[1] for line in done.stdout.splitlines()}) == len(PAIRS), "the pairs must differ in hits"
