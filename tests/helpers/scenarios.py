"""Small random routings and plans for them, and the reference's decisions: one seed is one scenario."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.decisions.run import iter_decisions
from policies.cache_spec import CacheSpec
from policies.switching import Domains, Kept
from tests.helpers.reference_cache import Event, ReferenceCache, rank_by_votes
from tests.helpers.reference_misses import ReferenceMisses
from tests.helpers.traces import MemoryRows, make_manifest, make_trace
from tracekit.rows import UNUSED, Columns
from tracekit.trace import Trace

DOMAINS = ("code", "prose", "tables")
Recorded = list[tuple[int, int, int, int]]  # visit, kind, key, slot


@dataclass(frozen=True)
class Scenario:
    """A routing in memory with the attributes of a trace that decisions read, and a cache to decide by."""

    trace: Trace
    spec: CacheSpec

    def step_rows(self) -> list[list[int]]:
        """The rows of each step."""
        steps = self.trace.step
        return [[int(row) for row in np.flatnonzero(steps == step)] for step in dict.fromkeys(steps.tolist())]

    def references(self) -> list[tuple[int, list[int]]]:
        """Every visit: the layer, and the experts chosen in (token, slot) order."""
        return [
            (layer, [int(e) for row in rows for e in self.trace.experts[row, layer] if e != UNUSED])
            for rows in self.step_rows()
            for layer in range(self.spec.layers)
        ]

    def weights(self) -> list[list[float]]:
        """What the gate gave each reference of each visit."""
        weights = self.trace.weights
        assert weights is not None
        return [
            [float(w) for row in rows for e, w in zip(*self._chosen(row, layer, weights), strict=True) if e != UNUSED]
            for rows in self.step_rows()
            for layer in range(self.spec.layers)
        ]

    def _chosen(self, row: int, layer: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.trace.experts[row, layer], weights[row, layer]

    def hints(self) -> list[list[int]]:
        """What the prefetcher is told at every visit: ranked experts of the target layer."""
        spec, visits = self.spec, self.references()
        if spec.prefetch == "none":
            return [[] for _ in visits]
        if spec.prefetch == "oracle":
            return [
                list(dict.fromkeys(visits[visit + spec.distance][1]))[: spec.count]
                if layer + spec.distance < spec.layers or (spec.wrap and visit + spec.distance < len(visits))
                else []
                for visit, (layer, _) in enumerate(visits)
            ]
        logits = self.trace.lookahead(spec.distance)
        assert logits is not None
        hints = []
        for rows in self.step_rows():
            for layer in range(spec.layers):
                target = layer + spec.distance
                if target < spec.layers:
                    of_target = logits[rows, layer, : self.trace.manifest.experts_per_layer[target]]
                    hints.append(rank_by_votes(of_target.tolist(), self.trace.top_k, spec.count))
                else:
                    hints.append([])
        return hints

    def reference(self, **parameters: Any) -> tuple[ReferenceCache, list[Event]]:
        """The reference cache after the whole trace, and its events. `parameters` are for its eviction policy."""
        spec, visits = self.spec, self.references()
        cache = ReferenceCache(
            spec.layers,
            spec.experts,
            spec.capacity,
            spec.size.tolist(),
            spec.eviction,
            staging=spec.staging,
            into_cache=spec.into_cache,
            distance=spec.distance,
            count=spec.count,
            wrap=spec.wrap,
            future=[{layer * spec.experts + expert for expert in chosen} for layer, chosen in visits],
            parameters={**(spec.eviction_parameters or {}), **parameters},
            pinned=spec.pinned,
            misses=ReferenceMisses(
                *(spec.layers, spec.where, spec.copied, spec.most_tokens, spec.admission, spec.admission_parameters),
                *(spec.per_step, spec.even),
            ),
        )
        events: list[Event] = []
        for (layer, chosen), hint, weights in zip(visits, self.hints(), self.weights(), strict=True):
            events += cache.visit(layer, chosen, hint, weights)
        return cache, events


def memory_trace(
    experts: np.ndarray,
    per_layer: list[int],
    step: np.ndarray | None = None,
    lookahead: dict[int, np.ndarray] | None = None,
    phase: np.ndarray | None = None,
    request: np.ndarray | None = None,
) -> Trace:
    """A trace without a file. The first step is prefill, unless `phase` [tokens] says otherwise; one `request`."""
    tokens, layers, top_k = experts.shape
    number = np.arange(tokens, dtype=np.int32)
    steps = number if step is None else step
    phases = (steps > steps[:1]).astype(np.uint8) if phase is None else phase
    weights = ((experts % 7 + 1) / 8).astype(np.float16)
    ahead = {f"lookahead-{distance}": values for distance, values in (lookahead or {}).items()}
    rows = MemoryRows(
        Columns(steps, np.zeros_like(number) if request is None else request, number, phases, np.full_like(number, -1)),
        experts,
        weights,
        ahead,
    )
    return Trace(Path("memory"), make_manifest(layers, per_layer, top_k, tokens=tokens), rows)


def random_scenario(seed: int, eviction: str = "lru", prefetch: str = "none", **fixed: Any) -> Scenario:
    """A random small model, routing and cache. `fixed` replaces fields of the CacheSpec."""
    rng = np.random.default_rng(seed)
    layers, experts = int(rng.integers(1, 5)), int(rng.integers(1, 8))
    top_k = int(rng.integers(1, experts + 1))
    tokens = int(rng.integers(1, 25))
    step = np.cumsum(rng.random(tokens) < rng.choice([0.3, 0.8, 1.0])).astype(np.int32)
    # Layers may have fewer experts than the largest; skewed routing gives hits worth arguing about.
    per_layer = [int(n) for n in rng.integers(max(1, experts - 2), experts + 1, layers)]
    per_layer[int(rng.integers(layers))] = experts
    chosen = np.full((tokens, layers, top_k), UNUSED, np.uint16)
    for layer, number in enumerate(per_layer):
        bias = rng.gumbel(size=number) * rng.choice([0.0, 2.0])
        for token in range(tokens):
            picked = np.argsort(-(bias + rng.gumbel(size=number)))[:top_k]
            chosen[token, layer, : len(picked)] = picked
    chosen[rng.random(chosen.shape) < rng.choice([0.0, 0.2])] = UNUSED
    distance = int(rng.integers(1, 4))
    logits = rng.integers(-2, 3, (tokens, max(layers - distance, 0), experts)).astype(np.float16)
    logits[rng.random(logits.shape) < 0.05] = np.nan
    trace = memory_trace(chosen, per_layer, step, {distance: logits})
    keys = layers * experts
    size = rng.integers(1, 6, keys) if rng.random() < 0.4 else np.ones(keys, np.int64)
    if rng.random() < 0.5:
        capacity = [int(rng.integers(0, int(size.sum()) + 2))]
    else:
        of_layer = size.reshape(layers, experts).sum(axis=1)
        capacity = [int(rng.integers(0, most + 2)) for most in of_layer]
    spec = CacheSpec(
        layers=layers,
        experts=experts,
        capacity=tuple(capacity),
        size=size.astype(np.int64),
        eviction=eviction,
        prefetch=prefetch,
        distance=distance,
        count=int(rng.integers(1, experts + 2)),
        staging=int(rng.integers(1, 4)),
    )
    return Scenario(trace, replace(spec, **fixed))


def with_misses(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with misses that are not all copied and kept."""
    rng = np.random.default_rng([seed, 1])
    spec = scenario.spec
    admission = str(rng.choice(["always", "always", "second-miss", "score"]))
    chosen = replace(
        spec,
        where=str(rng.choice(["copy", "host", "split", "auto"])),
        copied=int(rng.integers(0, 5)) * 250_000,
        most_tokens=tuple(rng.integers(0, 4, spec.layers).tolist()),
        admission=admission,
        admission_parameters={"threshold": float(rng.choice([0.1, 0.3, 0.5]))} if admission == "score" else None,
        per_step=None if rng.random() < 0.5 else int(rng.integers(0, 2 * spec.layers)),
        even=bool(rng.random() < 0.5),
    )
    return replace(scenario, spec=chosen)


def with_pinned(scenario: Scenario, seed: int) -> Scenario:
    """The scenario with some experts pinned: any that fit, from none to as many as there is room for."""
    spec, rng = scenario.spec, np.random.default_rng(seed)
    left, pinned = list(spec.capacity), []
    for key in rng.permutation(spec.layers * spec.experts)[: int(rng.integers(0, spec.layers * spec.experts))].tolist():
        group = key // spec.experts if len(left) > 1 else 0
        if spec.size[key] <= left[group]:
            left[group] -= int(spec.size[key])
            pinned.append(key)
    return replace(scenario, spec=replace(spec, pinned=tuple(pinned)))


def with_requests(scenario: Scenario, seed: int) -> tuple[Scenario, list[Scenario]]:
    """The scenario as if its steps were of several requests, one after the other; and each request by itself."""
    trace, rng = scenario.trace, np.random.default_rng(seed)
    begins = np.diff(trace.step, prepend=trace.step[0]) > 0
    request = np.cumsum(begins & (rng.random(len(begins)) < rng.choice([0.1, 0.5, 1.0]))).astype(np.int32)
    ahead = {distance: trace.lookahead(distance) for distance in trace.lookahead_distances}

    def part(rows: np.ndarray) -> Scenario:
        of_rows = {distance: logits[rows] for distance, logits in ahead.items() if logits is not None}
        per_layer = trace.manifest.experts_per_layer
        made = memory_trace(trace.experts[rows], per_layer, trace.step[rows], of_rows, trace.phase[rows], request[rows])
        return replace(scenario, trace=made)

    whole = np.ones(len(request), bool)
    return part(whole), [part(request == number) for number in range(int(request[-1]) + 1)]


def with_domains(scenario: Scenario, seed: int, *, warm: bool = False) -> Scenario:
    """The scenario as if of several requests with labels; what is pinned, and `warm`, for each domain: any experts."""
    scenario, _ = with_requests(scenario, seed)
    spec, rng = scenario.spec, np.random.default_rng(seed)
    keys = spec.layers * spec.experts

    def fitting() -> tuple[int, ...]:
        left, found = list(spec.capacity), []
        for key in rng.permutation(keys)[: int(rng.integers(0, keys))].tolist():
            group = key // spec.experts if len(left) > 1 else 0
            if spec.size[key] <= left[group]:
                left[group] -= int(spec.size[key])
                found.append(key)
        return tuple(sorted(found))

    def any_keys() -> tuple[int, ...]:
        return tuple(rng.permutation(keys)[: int(rng.integers(0, 6))].tolist()) if warm else ()

    kept = tuple(Kept(name, fitting(), any_keys()) for name in DOMAINS)
    domains = Domains(kept, np.zeros((len(DOMAINS), keys), np.int64))
    requests = int(scenario.trace.request.max(initial=-1)) + 1
    labels = [DOMAINS[place] for place in rng.integers(0, len(DOMAINS), requests)]
    trace = scenario.trace.with_manifest(msgspec.structs.replace(scenario.trace.manifest, domains=labels))
    return replace(scenario, trace=trace, spec=replace(spec, pinned=fitting(), domains=domains))


def on_disk(scenario: Scenario, path: Path) -> Trace:
    """The scenario's trace as a directory."""
    trace = scenario.trace
    ahead = {distance: trace.lookahead(distance) for distance in trace.lookahead_distances}
    return make_trace(
        path,
        trace.experts,
        num_experts=trace.manifest.experts_per_layer,
        step=trace.step,
        phase=trace.phase,
        weights=trace.weights,
        lookahead={distance: logits for distance, logits in ahead.items() if logits is not None and logits.size},
    )


def slots_of(scenario: Scenario, capacity: int, *, per_layer: bool = False) -> CacheSpec:
    """The scenario's cache with `capacity` slots of equal size instead of its own capacity."""
    spec = scenario.spec
    groups = spec.layers if per_layer else 1
    return replace(spec, capacity=(capacity,) * groups, size=np.ones(spec.layers * spec.experts, np.int64))


def decisions(
    scenario: Scenario, spec: CacheSpec | None = None, *, chunk: int = 1 << 20, compiled: bool = True
) -> Recorded:
    """The events of the scenario's cache, or of another one, as tuples."""
    events: Recorded = []
    for _, piece in iter_decisions(scenario.trace, spec or scenario.spec, chunk=chunk, compiled=compiled):
        events += piece.rows()
    return events
