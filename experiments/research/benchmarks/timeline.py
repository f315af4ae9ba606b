"""Decisions and their timeline, lookups per second: alone, and against the same timeline as SimPy processes."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from engine.hardware import load_hardware
from engine.shapes import load_shape
from engine.simulator.costs import Costs, model_costs
from engine.simulator.timeline import Timeline
from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.decisions import STEPS
from experiments.research.benchmarks.load import CHUNK, EXPERTS, LAYERS, SLOTS, batches, manifest, new_cache, routing
from policies.cache_state import Batch
from tracekit.demand import Demand

PEER_STEPS = CHUNK


def costs() -> Costs:
    """Qwen3-30B-A3B on an RTX 4090: the shape that the routing has."""
    return model_costs(manifest(), load_hardware("rtx4090"), load_shape("qwen3-30b-a3b"), None, None)


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


def simpy_ends(machine: Costs, work: list[Batch]) -> Callable[[], list[int]] | None:
    """Runs the decisions of `work` in the SimPy model, and says when each visit ends; None where that model is not.

    The tests compare every event with it: it comes with the source, not with the package.
    """
    try:
        from tests.helpers import simpy_model
    except ModuleNotFoundError as missing:
        why = f"no module {missing.name!r}; run in the source tree with simpy"
        print(f"not compared with SimPy: {why}", file=sys.stderr)
        return None
    cache, visits = new_cache(), []
    for batch in work:
        events = cache.run(batch)
        of_visit: list[list[tuple[int, int, int]]] = [[] for _ in batch.layer]
        for number, kind, key, slot in events.rows():
            of_visit[number - events.first_visit].append((kind, key, slot))
        for v, decided in enumerate(of_visit):
            demanded = batch.demand[batch.start[v] : batch.start[v + 1]].tolist()
            visits.append(simpy_model.Visit(v % LAYERS, 1, 1000, dict.fromkeys(demanded, 1), decided))
    return lambda: simpy_model.Machine(machine, EXPERTS, visits).run()


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
        Row.of_rates(
            "LRU decisions + timeline, lookups/s, against decisions alone",
            keys.size / both,
            keys.size / alone,
            ">= 60 M/s",
        )
    ]
    simulate = simpy_ends(machine, few)
    if simulate is None:
        return found
    if simulate() != ends.tolist():
        raise AssertionError("the timeline and the SimPy model differ")
    ours, theirs = medians(partial(decide_and_time, machine, work, demands), simulate, repeats=3)
    found.append(
        Row.of_rates(
            "LRU decisions + timeline, lookups/s, against the timeline in SimPy",
            keys.size / ours,
            keys[:PEER_STEPS].size / theirs,
            ">= 150x",
        )
    )
    return found
