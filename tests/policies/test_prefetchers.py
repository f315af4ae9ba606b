"""Prefetchers against slow references: what each suggests at every visit of random routings."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fields import Layout
from policies.registry import prefetcher
from tests.helpers.scenarios import decisions, random_scenario

Past = list[list[list[int]]]  # step -> layer -> demand (expert ids), the current step's layers so far included
Reference = Callable[[Past, int, int, int], list[int]]  # past, layer, distance, count -> expert ids of layer + distance


def previous_token(past: Past, layer: int, distance: int, count: int) -> list[int]:
    return past[-2][layer + distance][:count] if len(past) > 1 else []


def popular(past: Past, layer: int, distance: int, count: int) -> list[int]:
    chosen = Counter(expert for step in past[:-1] for expert in step[layer + distance])
    return sorted(chosen, key=lambda expert: (-chosen[expert], expert))[:count]


def markov(past: Past, layer: int, distance: int, count: int) -> list[int]:
    here = past[-1][layer]
    together = Counter(
        there for step in past[:-1] for mine in step[layer] if mine in here for there in step[layer + distance]
    )
    return sorted(together, key=lambda expert: (-together[expert], expert))[:count]


def history(past: Past, layer: int, distance: int, count: int) -> list[int]:
    """The latest of the 63 steps before this one that shares most experts over the layers seen, if it shares any."""
    now = past[-1]
    shared = [
        (sum(len(set(now[seen]) & set(step[seen])) for seen in range(layer + 1)), age)
        for age, step in enumerate(past[:-1])
    ][-63:]
    most, age = max(shared, default=(0, 0))
    return sorted(past[age][layer + distance])[:count] if most else []


REFERENCES: dict[str, Reference] = {
    "previous-token": previous_token,
    "popular": popular,
    "markov": markov,
    "history": history,
}


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_suggestions_equal_the_reference(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, experts, steps = int(rng.integers(1, 5)), int(rng.integers(1, 7)), int(rng.integers(1, 80))
    distance, count = int(rng.integers(1, 3)), int(rng.integers(1, experts + 1))
    layout = Layout(
        layers, experts, 1, distance, np.ones(layers * experts, np.int64), np.zeros(layers * experts, np.int64)
    )
    policy = prefetcher(name)
    subject = policy.interpreted(policy.allocate(layout))
    out = np.full(count, -1, np.int32)
    past: Past = []
    for _ in range(steps):
        past.append([])
        for layer in range(layers):
            demand = rng.permutation(experts)[: int(rng.integers(0, experts + 1))]
            past[-1].append(demand.tolist())
            subject.observe(layer, (demand + layer * experts).astype(np.uint32))
            if layer + distance < layers:
                found = subject.suggest(layer + distance, np.full(0, -1, np.int32), out)
                suggested = (out[:found] - (layer + distance) * experts).tolist()
                assert suggested == REFERENCES[name](past, layer, distance, count), (len(past), layer)


@pytest.mark.parametrize("name", REFERENCES)
def test_compiled_equals_interpreted(name: str) -> None:
    for seed in range(25):
        scenario = random_scenario(seed, "lru", name)
        assert decisions(scenario) == decisions(scenario, compiled=False)
