"""Timelines to test: costs in whole nanoseconds, hand-written decisions, random machines."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.decisions.run import iter_decisions
from engine.simulator.costs import Costs
from engine.simulator.lanes import STALL_CPU, STALL_DEMAND, STALL_DISK, STALL_LINK
from engine.simulator.log import (
    BEGIN,
    COPY,
    COPY_ADMITTED,
    COPY_AHEAD,
    END,
    KEY,
    KIND,
    OVERHEAD_PART,
    VISIT,
    WAIT,
    WHAT,
)
from engine.simulator.timeline import CAUSES, Timeline
from policies.cache_spec import slots_of
from policies.events import Events
from tests.helpers.reference_cache import ADMIT, PREFETCH
from tests.helpers.scenarios import Scenario
from tests.helpers.simpy_model import Visit
from tracekit.demand import Demand, demand_of


def costs_of(layers: int, copy: int = 10, expert: int = 3, dense: int = 5, **fields: Any) -> Costs:
    """Costs in whole nanoseconds; whatever is not named costs nothing."""
    none = np.zeros(layers, np.int64)
    settings: dict[str, Any] = {name: 0 for name in Costs._fields}
    settings |= {
        "dense_ns": none + dense,
        "expert_ns": none + expert,
        "dequant_ns": none,
        "predict_ns": none,
        "copy_engines": 1,
        "chunks": none + 1,
        "chunk_ns": none[:, None] + copy,
        "rest_ns": none[:, None] + copy,
        "expert_bytes": (1,) * layers,
        "host_bytes": -1,
        "call_ns": -1,
        "read_ns": none,
        "cpu_expert_ns": none,
        "scale": 1.0,
        "notes": (),
        "low": None,
    }
    settings |= fields
    return Costs(**(settings | {"lanes_ns": fields.get("lanes_ns", settings["read_ns"].reshape(layers, 1))}))


class Script:
    """Two layers of three experts, one token a step, decisions written by hand."""

    def __init__(self, visits: list[list[tuple[int, int, int]]], slots: int = 4, **costs: Any) -> None:
        """`visits`: for each visit its events (kind, expert, slot); layers alternate 0, 1."""
        experts = np.full((len(visits) // 2, 2, 3), 65535, np.uint16)
        rows = []
        for number, events in enumerate(visits):
            layer = number % 2
            demanded = [expert for kind, expert, _ in events if kind <= ADMIT]
            experts[number // 2, layer, : len(demanded)] = demanded
            for kind, expert, slot in events:
                # A prefetch, and what becomes of it unused, is of the other layer.
                of_layer = 1 - layer if kind == PREFETCH else layer
                rows.append((number, kind, of_layer * 3 + expert, slot))
        steps = np.arange(len(experts) + 1)
        self.demand = demand_of(experts, 3, steps, np.ones(len(experts), np.uint8))
        self.events = Events.of(rows, len(visits))
        self.timeline = Timeline(costs_of(2, **costs), slots, 3, log=range(len(experts)))
        self.end = self.timeline.run(self.demand, self.events, np.zeros(len(experts), np.int64)).visit_end.tolist()

    @property
    def spent(self) -> dict[str, int]:
        """Nanoseconds by cause, those that are not zero."""
        total = dict(zip(CAUSES, self.timeline.spent.sum(axis=0).tolist(), strict=True))
        return {cause: ns for cause, ns in total.items() if ns}


FEATURES = (
    *("engines", "chunks", "disk", "lanes", "cpu", "contention"),
    *("dequantisation", "fused", "overlapped", "managing"),
)
"""`lanes` are of a disk, `contention` between copies and the CPU."""


def random_costs(layers: int, seed: int, features: Set[str] = frozenset()) -> Costs:
    """A random machine with these of FEATURES. Every copy and chunk takes some time on the wire."""
    rng = np.random.default_rng(seed)

    def spread(most: int) -> int:
        return int(rng.integers(0, most + 1))

    def ns(most: int, chunks: int | None = None) -> np.ndarray:
        return rng.integers(0, most + 1, layers if chunks is None else (layers, chunks)).astype(np.int64)

    copy = int(rng.choice([3, 40]))
    chunks = spread(4) + 1 if "chunks" in features else 1
    chunk_ns = 1 + ns(copy if chunks == 1 else copy // 2, chunks)
    fields: dict[str, Any] = {
        "expert_ns": ns(int(rng.choice([0, 4, 30]))),
        "dense_ns": ns(int(rng.choice([0, 10, 80]))),
        "expert_token_ps": spread(4000),
        "expert_overhead_ns": spread(3),
        "copy_overhead_ns": spread(3),
        "dense_token_ps": spread(4000),
        "context_ps": spread(300),
        "layer_overhead_ns": spread(3),
        "readback_ns": spread(3),
        "predict_ns": ns(3),
        "predict_token_ps": spread(2000),
        "step_ns": spread(20),
        "setup_ns": spread(4),
        "chunk_ns": chunk_ns,
        "rest_ns": 1 + ns(copy, chunks) if chunks > 1 else chunk_ns,
        "chunks": rng.integers(1, chunks + 1, layers).astype(np.int64),
    }
    if "engines" in features:
        fields |= {"copy_engines": 2, "setup_ns": spread(20)}
    if "dequantisation" in features:
        fields |= {"dequant_ns": ns(5)}
    if "fused" in features:
        fields |= {"call_ns": spread(20)}
        fields |= {"overlapped": int("overlapped" in features)}
    if "managing" in features:
        fields |= {"lookup_ns": spread(4), "insert_ns": spread(6)}
    if "disk" in features:
        fields |= {
            "expert_bytes": tuple(rng.integers(1, 4, layers).tolist()),
            "host_bytes": spread(20),
            "read_ns": ns(int(rng.choice([3, 60]))),
            "slowdown_percent": int(rng.choice([0, 50, 100])),
        }
    if {"disk", "lanes"} <= features:  # every read takes some time, longer or shorter with others beside it
        lanes_ns = 1 + ns(int(rng.choice([3, 60])), int(rng.integers(2, 6)))
        fields |= {"lanes_ns": lanes_ns, "read_ns": lanes_ns[:, 0].copy()}
    if "cpu" in features:
        fields |= {
            "cpu": 1,
            "cpu_expert_ns": ns(int(rng.choice([10, 60]))),
            "cpu_token_ps": spread(6000),
            "cpu_overhead_ns": spread(5),
        }
    if "contention" in features:
        fields |= {"cpu_beside_percent": int(rng.choice([0, 30, 150])), "copy_beside_percent": spread(100)}
    return costs_of(layers, **fields)


@dataclass
class Run:
    """When each visit of a scenario ends; its steps' time by cause; the timeline after it; its decisions in pieces."""

    end: np.ndarray
    spent: np.ndarray
    timeline: Timeline
    pieces: list[tuple[Demand, Events]]


def timed(scenario: Scenario, costs: Costs, chunk: int = 1 << 20, log: range | None = None) -> Run:
    """Decide and time a scenario."""
    trace, spec = scenario.trace, scenario.spec
    slots = sum(min(c, spec.layers * spec.experts) for c in spec.capacity) + spec.staging
    slots += 0 if spec.low is None else slots_of(spec)
    timeline = Timeline(costs, slots, spec.experts, log)
    context = context_of(scenario)
    pieces, ends, spent = list(iter_decisions(trace, spec, chunk=chunk)), [], []
    for demand, events in pieces:
        of_piece = context[demand.first_step : demand.first_step + demand.steps]
        found = timeline.run(demand, events, of_piece)
        ends.append(found.visit_end)
        spent.append(found.spent)
    return Run(np.concatenate(ends), np.concatenate(spent), timeline, pieces)


def context_of(scenario: Scenario) -> np.ndarray:
    return np.array([sum(scenario.trace.position[rows] + 1) for rows in scenario.step_rows()], np.int64)


def simpy_visits(scenario: Scenario, pieces: list[tuple[Demand, Events]]) -> list[Visit]:
    """The same decisions for the SimPy machine; what a visit demands is counted anew from the routing."""
    events: dict[int, list[tuple[int, int, int]]] = {}
    for _, piece in pieces:
        for visit, kind, key, slot in piece.rows():
            events.setdefault(visit, []).append((kind, key, slot))
    rows, context = scenario.step_rows(), context_of(scenario)
    visits = []
    for number, (layer, chosen) in enumerate(scenario.references()):
        step = number // scenario.spec.layers
        tokens_of = Counter(layer * scenario.spec.experts + expert for expert in chosen)
        if scenario.spec.low is not None:
            base = scenario.spec.layers * scenario.spec.experts
            keys = {key % base: key for kind, key, _ in events.get(number, []) if kind <= ADMIT}
            tokens_of = Counter({keys[key]: count for key, count in tokens_of.items()})
        visits.append(Visit(layer, len(rows[step]), int(context[step]), tokens_of, events.get(number, [])))
    return visits


def seen(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Without copies of what nobody waits for that begin behind the last choice of a gate: nobody would see them."""
    last = max(row[END] for row in rows if row[WHAT] == OVERHEAD_PART)
    return [
        row for row in rows if row[WHAT] != COPY or row[KIND] not in (COPY_AHEAD, COPY_ADMITTED) or row[BEGIN] < last
    ]


def comparable(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Rows of a log in one order, the parts of one wait as one WAIT, of those for missing experts booked to demand."""
    merged: list[tuple[int, ...]] = []
    for row in rows:
        if row[WHAT] == WAIT and row[KIND] in (STALL_LINK, STALL_DISK, STALL_DEMAND, STALL_CPU):
            row = (*row[:KIND], STALL_CPU if row[KEY] < 0 else STALL_DEMAND, *row[KIND + 1 :])
            if merged and merged[-1][WHAT] == WAIT and merged[-1][VISIT : KIND + 1] == row[VISIT : KIND + 1]:
                row = (WAIT, merged.pop()[BEGIN], *row[END:])
        merged.append(row)
    return sorted(merged)
