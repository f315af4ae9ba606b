"""Decisions per second against libCacheSim's C path, policy by policy.

What is timed. Ours: `ExpertCache.run` on prebuilt batches; it looks up, decides, and writes every hit, load and
eviction with its slot. libCacheSim: `c_process_trace`, its compiled loop, over one memory-mapped binary trace per
layer, each on a cache of that layer's 32 objects of size 1 with a hash table that fits the processor's cache. This is
the fastest way in that its Python package offers. Opening files, creating caches, Python and the start of its process
are outside its timer; decoding 24 bytes per request is inside, as reading our batches is inside ours. It writes nothing
per request but counts hits. Both see the same lookups; libCacheSim knows no visits, so a few of its hits differ.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from experiments.research.benchmarks.alternating import Row
from experiments.research.benchmarks.decisions import run
from experiments.research.benchmarks.load import LAYERS, SLOTS, batches, routing
from policies.cache_state import Batch

STEPS, REPEATS = 5_000, 5
TIMER = Path(__file__).with_name("libcachesim_timer.py")
# 4,096 entries: as fast as any of 2^5 to 2^16 for each policy. The default of 2^24 falls out of every cache.
HASHPOWER = 12
ORACLE_GENERAL = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
PAIRS = (
    ("lru", "LRU_init", 3.0),
    ("sieve", "Sieve_init", 1.0),
    ("s3fifo", "S3FIFO_init", 1.0),
    ("arc", "ARC_init", 1.0),
)


def write_layers(keys: np.ndarray, folder: Path) -> list[str]:
    """One trace file per layer. None of these policies reads the next access."""
    paths = []
    for layer in range(LAYERS):
        ids = keys[:, layer].reshape(-1)
        records = np.zeros(len(ids), ORACLE_GENERAL)
        records["time"], records["id"], records["size"], records["next"] = np.arange(len(ids)), ids, 1, -1
        path = folder / f"layer-{layer:02}.oracleGeneral"
        records.tofile(path)
        paths.append(str(path))
    return paths


def peer_seconds(cache: str, traces: list[str]) -> float:
    """Seconds of libCacheSim's own loops, measured inside its process."""
    command = [sys.executable, str(TIMER), cache, str(SLOTS), str(HASHPOWER), *traces]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    seconds: float = json.loads(done.stdout)["seconds"]
    return seconds


def our_seconds(policy: str, work: list[Batch]) -> float:
    """Seconds of the compiled kernel with a fresh cache."""
    start = perf_counter()
    run(policy, work)
    return perf_counter() - start


def rows() -> list[Row]:
    """Each policy against libCacheSim's; nothing where it is not installed."""
    if find_spec("libcachesim") is None:
        print("libcachesim is not installed: no comparison (pip: the dev extra)", file=sys.stderr)
        return []
    keys = routing(STEPS)
    work = batches(keys)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        traces = write_layers(keys, Path(folder))
        for policy, cache, target in PAIRS:
            run(policy, work)
            # In turns, so that a drift of the machine's speed falls on both alike.
            times = [(our_seconds(policy, work), peer_seconds(cache, traces)) for _ in range(REPEATS)]
            ours, theirs = (median(column) for column in zip(*times, strict=True))
            found.append(
                Row.of_rates(
                    f"{policy} decisions, lookups/s, against libCacheSim",
                    keys.size / ours,
                    keys.size / theirs,
                    f">= {target:.0f}x",
                )
            )
    return found
