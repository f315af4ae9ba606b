"""Lookup by lookup against libCacheSim, on flat traces: one layer, one expert per visit."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.cache_spec import CacheSpec
from tests.helpers.reference_cache import BYPASS, LOAD
from tests.helpers.scenarios import Scenario, decisions, memory_trace

pytestmark = pytest.mark.skipif(
    find_spec("libcachesim") is None, reason="libcachesim is not installed (pip: dev extra)"
)

WORKER = Path(__file__).parents[1] / "helpers" / "libcachesim_worker.py"
EXPERTS = 60
CAPACITIES = (2, 3, 5, 8, 13, 20, 37)
# libCacheSim aborts where a tenth of the cache is nothing, and loads nothing new where it is one object.
S3_CAPACITIES = (20, 25, 30, 39)


def zipf_trace(seed: int) -> list[int]:
    """Independent requests, popularity rank^-alpha."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, EXPERTS + 1) ** -rng.uniform(0.4, 1.3)
    picks: list[int] = rng.choice(EXPERTS, 1_500, p=popularity / popularity.sum()).tolist()
    return picks


def changing_trace(seed: int) -> list[int]:
    """Scans, skewed requests and loops in turn: the ghosts of `arc` and `s3fifo` come and go."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, EXPERTS + 1) ** -0.8
    parts = []
    for _ in range(6):
        parts.append(rng.permutation(EXPERTS)[: rng.integers(5, 40)])
        parts.append(rng.choice(EXPERTS, rng.integers(5, 80), p=popularity / popularity.sum()))
        parts.append(np.tile(rng.permutation(EXPERTS)[: rng.integers(2, 9)], rng.integers(1, 4)))
    picks: list[int] = np.concatenate(parts).tolist()
    return picks


TRACES = [zipf_trace(seed) for seed in range(4)] + [changing_trace(seed) for seed in range(12)]


def peer_hits(cache: str, parameters: str, capacities: tuple[int, ...]) -> list[list[bool]]:
    """libCacheSim's hits on every trace at every capacity, from a process that it may take down with it."""
    jobs = [
        {"cache": cache, "parameters": parameters, "capacity": capacity, "ids": ids}
        for capacity in capacities
        for ids in TRACES
    ]
    done = subprocess.run(
        [sys.executable, str(WORKER)], input=json.dumps(jobs), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [[bool(hit) for hit in hits] for hits in json.loads(done.stdout)]


def flat(eviction: str, capacity: int, ids: list[int], parameters: Mapping[str, Any] | None = None) -> Scenario:
    """One expert per visit, in `capacity` slots."""
    trace = memory_trace(np.array(ids, np.uint16).reshape(-1, 1, 1), [EXPERTS])
    return Scenario(trace, CacheSpec(1, EXPERTS, (capacity,), np.ones(EXPERTS, np.int64), eviction, parameters))


def our_hits(eviction: str, capacities: tuple[int, ...]) -> list[list[bool]]:
    """Hits of the policy itself."""
    return [
        [kind < LOAD for _, kind, _, _ in decisions(flat(eviction, capacity, ids), compiled=False) if kind <= BYPASS]
        for capacity in capacities
        for ids in TRACES
    ]


def reference_hits(eviction: str, capacities: tuple[int, ...], **deviation: Any) -> list[list[bool]]:
    """Hits of the slow reference, told to deviate."""
    return [
        [kind < LOAD for _, kind, _ in flat(eviction, capacity, ids).reference(**deviation)[1] if kind <= BYPASS]
        for capacity in capacities
        for ids in TRACES
    ]


@pytest.mark.parametrize(
    ("eviction", "cache", "parameters"),
    [
        ("lru", "LRU_init", ""),
        ("fifo", "FIFO_init", ""),
        ("lfu", "LFU_init", ""),
        ("belady", "Belady_init", ""),
        ("clock", "Clock_init", "init-freq=0, n-bit-counter=1"),
        ("sieve", "Sieve_init", ""),
        ("arc", "ARC_init", ""),
    ],
)
def test_the_same_lookups_hit(eviction: str, cache: str, parameters: str) -> None:
    assert our_hits(eviction, CAPACITIES) == peer_hits(cache, parameters, CAPACITIES)


def test_s3fifo_hits_as_the_simulator_of_its_paper() -> None:
    """S3FIFOv0 is the version of the paper; both take shares 0.1 and 0.9 and promote at the second hit."""
    assert our_hits("s3fifo", S3_CAPACITIES) == peer_hits("S3FIFOv0_init", "", S3_CAPACITIES)


def test_s3fifo_of_today_differs_only_in_how_it_fills_up() -> None:
    """Since December 2024 libCacheSim lets what finds the small queue full enter the main one, until it evicts."""
    today = peer_hits("S3FIFO_init", "", S3_CAPACITIES)
    assert reference_hits("s3fifo", S3_CAPACITIES, fill_main_first=True) == today
    assert our_hits("s3fifo", S3_CAPACITIES) != today


def test_lru_k_differs_only_in_remembering_what_was_evicted() -> None:
    """The paper's section 2.1.2 retains the history of what was evicted; libCacheSim forgets it."""
    forgetful = peer_hits("LRU_K_init", "k=2", CAPACITIES)
    assert reference_hits("lru-k", CAPACITIES, retain=False) == forgetful
    assert our_hits("lru-k", CAPACITIES) != forgetful
