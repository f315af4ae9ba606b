"""Hits at every cache size from one pass, against replaying each size. Both start from a trace's demand."""

from functools import partial
from itertools import pairwise

import numpy as np

from engine.decisions.signals import NOTHING, next_use
from engine.stacks.belady import belady_positions, belady_stack, next_uses
from engine.stacks.lru import lru_positions, lru_stack
from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.load import EXPERTS, LAYERS, new_cache, routing
from policies.cache_state import Batch
from policies.events import HIT
from tracekit.demand import Demand, demand_of

STEPS, CHUNK = 4_000, 1_000
SWEPT_STEPS = {"lru": 400, "belady": 50}
TARGET = {"lru": ">= 50 M/s", "belady": ">= 25 M/s"}


def demand_of_decoding(keys: np.ndarray) -> list[Demand]:
    """Demand of keys [steps, layers, top_k], one decoded token to a step."""
    experts = (keys - np.arange(LAYERS, dtype=np.int32)[:, None] * EXPERTS).astype(np.uint16)
    phase = np.ones(len(keys), np.uint8)
    edges = [*range(0, len(keys), CHUNK), len(keys)]
    return [
        demand_of(experts[first:last], EXPERTS, np.arange(first, last + 1), phase, first)
        for first, last in pairwise(edges)
    ]


def one_pass(policy: str, demands: list[Demand]) -> np.ndarray:
    """Hits [slots] i64 at 1 to EXPERTS slots per layer."""
    hits = np.zeros((2, LAYERS * EXPERTS), np.int64)
    if policy == "lru":
        recency = lru_stack(LAYERS, EXPERTS, LAYERS)
        for demand in demands:
            lru_positions(recency, demand, hits, demand.phase)
    else:
        future = belady_stack(LAYERS, EXPERTS, LAYERS)
        for demand, use in zip(demands, next_uses(demands), strict=True):
            belady_positions(future, demand, use, hits, demand.phase)
    return np.cumsum(hits.sum(axis=0)[:EXPERTS])


def sweep(policy: str, demands: list[Demand]) -> np.ndarray:
    """The same, by deciding every size."""
    nothing = [(NOTHING, NOTHING)] * len(demands)
    signals = next_use(demands) if policy == "belady" else nothing
    hits = np.zeros(EXPERTS, np.int64)
    for slots in range(1, EXPERTS + 1):
        cache = new_cache(policy, slots)
        for demand, signal in zip(demands, signals, strict=True):
            hints = np.empty((demand.visits, 0), np.int32)
            events = cache.run(Batch(demand.layer, demand.start, demand.keys, demand.recency, *signal, hints))
            hits[slots - 1] += np.count_nonzero(events.kind == HIT)
    return hits


def rows() -> list[Row]:
    """Lookups per second of whole curves of 128 sizes; the sweep has fewer steps and is compared per lookup."""
    keys = routing(STEPS)
    demands = demand_of_decoding(keys)
    found = []
    for policy, name in (("lru", "LRU"), ("belady", "Belady")):
        few = demand_of_decoding(keys[: SWEPT_STEPS[policy]])
        # Also compiles both.
        if not np.array_equal(one_pass(policy, few), sweep(policy, few)):
            raise AssertionError(f"{policy}: one pass and the sweep do not agree")
        ours, peer = medians(partial(one_pass, policy, demands), partial(sweep, policy, few))
        found.append(
            Row.of_rates(
                f"{name} at all {EXPERTS} sizes, lookups/s, against replaying each",
                sum(len(demand.keys) for demand in demands) / ours,
                sum(len(demand.keys) for demand in few) / peer,
                TARGET[policy],
            )
        )
    return found
