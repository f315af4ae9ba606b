"""Policies that rank by sums of decayed lookups: every victim is the least of those that could go, by direct sums."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from policies.events import EVICT, HIT, LOAD
from tests.helpers.scenarios import Scenario, decisions, random_scenario

Lookups = dict[int, list[tuple[int, float]]]  # key -> (step, gate weight) of its lookups so far


def score(lookups: Lookups, key: int, step: int, layer: int, scenario: Scenario) -> float:
    """Gate weight, decayed by the visits of the expert's own layer since: by steps, or by one less before its turn."""
    return sum(weight * 0.9 ** since(key, then, step, layer, scenario) for then, weight in lookups[key])


def layer_aware(lookups: Lookups, key: int, step: int, layer: int, scenario: Scenario) -> float:
    """Minus the expected number of visits until the expert's next use."""
    layers = scenario.spec.layers
    frequency = 0.05 * sum(0.95 ** since(key, then, step, layer, scenario) for then, _ in lookups[key])
    until = (key // scenario.spec.experts - layer - 1) % layers + 1
    return -(until + layers * (1 / frequency - 1))


def since(key: int, then: int, step: int, layer: int, scenario: Scenario) -> int:
    """Whole rounds of visits between the lookup and now."""
    own = key // scenario.spec.experts
    return (step * scenario.spec.layers + layer - then * scenario.spec.layers - own) // scenario.spec.layers


@pytest.mark.parametrize(("name", "worth"), [("score", score), ("layer-aware", layer_aware)])
def test_every_victim_is_worth_least(name, worth) -> None:  # type: ignore[no-untyped-def]
    evictions = 0
    for seed in range(150):
        drawn = random_scenario(seed, name)
        spec = replace(drawn.spec, size=np.ones_like(drawn.spec.size))
        scenario = replace(drawn, spec=spec)
        groups = len(spec.capacity)
        kept: set[int] = set()
        lookups: Lookups = defaultdict(list)
        steps = scenario.step_rows()
        events = defaultdict(list)
        for visit, kind, key, _ in decisions(scenario, compiled=False):
            events[visit].append((kind, key))
        for visit, (layer, chosen) in enumerate(scenario.references()):
            step = visit // spec.layers
            demand = {layer * spec.experts + expert for expert in chosen}
            for key in demand:
                lookups[key].append((step, gate_weight(scenario, steps[step], layer, key % spec.experts)))
            for kind, key in events[visit]:
                if kind == EVICT:
                    evictions += 1
                    group = key // spec.experts if groups > 1 else 0
                    rivals = [other for other in kept - demand if groups == 1 or other // spec.experts == group]
                    least = min(worth(lookups, other, step, layer, scenario) for other in rivals)
                    mine = worth(lookups, key, step, layer, scenario)
                    assert key in rivals and mine <= least + 1e-9 * abs(least), (seed, visit)
                    kept.remove(key)
                elif kind == LOAD:
                    kept.add(key)
                elif kind == HIT:
                    assert key in kept
    assert evictions > 500


def gate_weight(scenario: Scenario, rows: list[int], layer: int, expert: int) -> float:
    """What the tokens of a step gave an expert of a layer."""
    weights = scenario.trace.weights_of(0, scenario.trace.tokens)
    assert weights is not None
    chosen = scenario.trace.experts[rows, layer] == expert
    return float(weights[rows, layer][chosen].astype(np.float64).sum())
