"""Decisions and their timeline, lookups per second: alone, and against the same timeline as SimPy processes."""

import importlib
import sys
from functools import partial
from typing import Any

import numpy as np

from engine.hardware import load_hardware
from engine.shapes import load_shape
from engine.simulator.costs import Costs, model_costs
from engine.simulator.timeline import Timeline
from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.decisions import CHUNK, EXPERTS, LAYERS, SLOTS, STEPS, TOP_K, batches, routing
from policies.cache import CacheSpec, ExpertCache
from policies.cache_state import Batch
from tracekit.demand import Demand
from tracekit.manifest import Manifest, ModelInfo

PEER_STEPS = CHUNK
MODEL = "tests.helpers.simpy_model"
"""The SimPy model that the tests compare every event with; it comes with the source, not with the package."""


def costs() -> Costs:
    """Qwen3-30B-A3B on an RTX 4090: the shape that the routing has."""
    layers = list(range(LAYERS))
    manifest = Manifest(
        source="benchmark",
        model=ModelInfo(id="benchmark"),
        moe_layers=layers,
        model_layers=LAYERS,
        experts_per_layer=[EXPERTS] * LAYERS,
        top_k=TOP_K,
    )
    return model_costs(manifest, load_hardware("rtx4090"), load_shape("qwen3-30b-a3b"), None, None)


def demand_of_batch(number: int, batch: Batch) -> Demand:
    """One decoded token a step."""
    ones = np.ones(len(batch.demand), np.int32)
    steps = len(batch.layer) // LAYERS
    return Demand(
        layers=LAYERS,
        experts=EXPERTS,
        first_step=number * CHUNK,
        layer=batch.layer,
        start=batch.start,
        keys=batch.demand,
        recency=batch.recency,
        tokens=ones,
        step_tokens=ones[:steps],
        phase=np.ones(steps, np.uint8),
    )


def new_cache() -> ExpertCache:
    return ExpertCache(CacheSpec(LAYERS, EXPERTS, (SLOTS,) * LAYERS, np.ones(LAYERS * EXPERTS, np.int64), "lru"))


def decide(work: list[Batch]) -> None:
    """Decisions alone."""
    cache = new_cache()
    for batch in work:
        cache.run(batch)


def decide_and_time(machine: Costs, work: list[Batch], demands: list[Demand]) -> np.ndarray:
    """Decisions, and when each visit ends."""
    cache, timeline = new_cache(), Timeline(machine, LAYERS * SLOTS, EXPERTS)
    ends = []
    for batch, demand in zip(work, demands, strict=True):
        context = np.full(demand.steps, 1000, np.int64)
        ends.append(timeline.run(demand, cache.run(batch), context).visit_end)
    return np.concatenate(ends)


def simpy_visits(model: Any, work: list[Batch]) -> list[Any]:
    """The decisions of `work` for the SimPy model."""
    cache, visits = new_cache(), []
    for batch in work:
        events = cache.run(batch)
        of_visit: list[list[tuple[int, int, int]]] = [[] for _ in batch.layer]
        for number, kind, key, slot in events.rows():
            of_visit[number - events.first_visit].append((kind, key, slot))
        for v, decided in enumerate(of_visit):
            demanded = batch.demand[batch.start[v] : batch.start[v + 1]].tolist()
            visits.append(model.Visit(v % LAYERS, 1, 1000, dict.fromkeys(demanded, 1), decided))
    return visits


def rows() -> list[Row]:
    """Decisions with the timeline against decisions alone, and against SimPy."""
    keys = routing(STEPS)
    work = batches(keys)
    demands = [demand_of_batch(number, batch) for number, batch in enumerate(work)]
    machine = costs()
    few, few_demands = work[: PEER_STEPS // CHUNK], demands[: PEER_STEPS // CHUNK]
    ends = decide_and_time(machine, few, few_demands)
    both, alone = medians(partial(decide_and_time, machine, work, demands), partial(decide, work))
    found = [
        Row(
            "LRU decisions + timeline, lookups/s, against decisions alone",
            f"{keys.size / both / 1e6:.0f} M/s",
            f"{keys.size / alone / 1e6:.0f} M/s",
            alone / both,
            ">= 60 M/s",
        )
    ]
    try:
        model = importlib.import_module(MODEL)
    except ModuleNotFoundError as missing:
        print(
            f"not compared with SimPy: no module {missing.name!r}; run in the source tree with simpy", file=sys.stderr
        )
        return found
    visits = simpy_visits(model, few)

    def simulate() -> list[int]:
        return model.Machine(machine, EXPERTS, visits).run()  # type: ignore[no-any-return]

    if simulate() != ends.tolist():
        raise AssertionError("the timeline and the SimPy model differ")
    ours, theirs = medians(partial(decide_and_time, machine, work, demands), simulate, repeats=3)
    ours, theirs = keys.size / ours, keys[:PEER_STEPS].size / theirs
    found.append(
        Row(
            "LRU decisions + timeline, lookups/s, against the timeline in SimPy",
            f"{ours / 1e6:.0f} M/s",
            f"{theirs / 1e6:.3f} M/s",
            ours / theirs,
            ">= 150x",
        )
    )
    return found
