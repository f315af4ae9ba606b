"""Random experts in two formats, and how their decisions follow from the rules: written plainly."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from policies.cache_spec import LowCopies
from tests.helpers.reference_cache import ADMIT, HIT_PREFETCHED, LOAD, Event, ReferenceCache
from tests.helpers.scenarios import Scenario, random_scenario
from tracekit.rows import UNUSED

RULES: dict[str, tuple[dict[str, float], ...]] = {
    "miss-below": ({"threshold": 0.0}, {"threshold": 0.2}, {"threshold": 0.5}, {"threshold": 2.0}),
    "rank": ({"n": 0}, {"n": 1}, {"n": 2}),
    "popular": ({"n": 1}, {"n": 3}),
}
Wanted = Callable[[int, float, int], bool]
"""(key, share, rank) -> whether the low copy will do"""


def tiered_scenario(seed: int, prefetch: str = "none", *, into_cache: bool = False, eviction: str = "lru") -> Scenario:
    """A random scenario whose experts have low copies, under one of RULES."""
    scenario = random_scenario(seed, eviction, prefetch, into_cache=into_cache)
    rng, spec = np.random.default_rng(seed + 1), scenario.spec
    rule = str(rng.choice(sorted(RULES)))
    parameters = RULES[rule][int(rng.integers(len(RULES[rule])))]
    most = spec.experts * spec.layers // len(spec.capacity)
    places = np.concatenate([rng.permutation(spec.experts) for _ in range(spec.layers)])
    low = LowCopies(
        capacity=tuple(int(rng.integers(0, most + 1)) for _ in spec.capacity),
        rule=rule,
        parameters=parameters,
        popularity=places if rule == "popular" else None,
    )
    capacity = tuple(min(one, most) for one in spec.capacity)
    return replace(scenario, spec=replace(spec, low=low, capacity=capacity, size=np.ones_like(spec.size)))


def wanted(scenario: Scenario) -> Wanted:
    """The scenario's rule, in a line each."""
    low = scenario.spec.low
    assert low is not None and low.parameters is not None
    number = next(iter(low.parameters.values()))
    rules: dict[str, Wanted] = {
        "miss-below": lambda key, share, rank: share < number,
        "rank": lambda key, share, rank: rank >= number,
        "popular": lambda key, share, rank: low.popularity is not None and bool(low.popularity[key] >= number),
    }
    return rules[low.rule]


def obvious_importance(ids: np.ndarray, weights: np.ndarray, expert: int) -> tuple[float, int]:
    """The largest share and the best place that an expert has among the choices of a visit's tokens [tokens, k]."""
    shares, ranks = [], []
    for row, row_weights in zip(ids.tolist(), weights.astype(float).tolist(), strict=True):
        chosen = [(weight, slot, one) for slot, (one, weight) in enumerate(zip(row, row_weights, strict=True))]
        chosen = [entry for entry in chosen if entry[2] != UNUSED]
        total = sum(weight for weight, *_ in chosen)
        by_weight = sorted(chosen, key=lambda entry: (-entry[0], entry[1]))
        for rank, (weight, _, one) in enumerate(by_weight):
            if one == expert:
                shares.append(weight / total)
                ranks.append(rank)
    return max(shares), min(ranks)


def reference(scenario: Scenario) -> tuple[list[Event], list[list[int]]]:
    """All events, keys of low copies behind all others; and the experts that low copies served, by visit."""
    spec, trace = scenario.spec, scenario.trace
    assert spec.low is not None
    base, rule = spec.layers * spec.experts, wanted(scenario)

    def cache(capacity: Sequence[int], count: int) -> ReferenceCache:
        sizes = [1] * base
        return ReferenceCache(
            spec.layers,
            spec.experts,
            capacity,
            sizes,
            spec.eviction,
            staging=spec.staging,
            into_cache=spec.into_cache,
            distance=spec.distance,
            count=count,
        )

    high, low = cache(spec.capacity, spec.count), cache(spec.low.capacity, 0)
    events: list[Event] = []
    served: list[list[int]] = []
    rows = [rows for rows in scenario.step_rows() for _ in range(spec.layers)]
    for of_step, (layer, chosen), hint in zip(rows, scenario.references(), scenario.hints(), strict=True):
        lows = []
        for expert in dict.fromkeys(chosen):
            key = layer * spec.experts + expert
            there = key in high.kept or key in high.staged
            weights = trace.weights
            assert weights is not None
            importance = obvious_importance(trace.experts[of_step, layer], weights[of_step, layer], expert)
            if rule(key, *importance) and not there:
                lows.append(expert)
        above = high.visit(layer, [expert for expert in chosen if expert not in lows], hint)
        below = [
            (visit, kind, key + base)
            for visit, kind, key in low.visit(layer, [expert for expert in chosen if expert in lows])
        ]
        last = max((i for i, (_, kind, _) in enumerate(above) if kind <= ADMIT), default=-1)
        events += [event for event in above if event[1] <= HIT_PREFETCHED]
        events += [event for event in below if event[1] <= HIT_PREFETCHED]
        events += [event for event in above[: last + 1] if event[1] >= LOAD]
        events += [event for event in below if event[1] >= LOAD]
        events += above[last + 1 :]
        served.append(lows)
    return events, served
