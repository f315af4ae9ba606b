"""Prefetchers against slow references: what each suggests at every visit of random routings."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache import ExpertCache
from policies.fields import Layout
from policies.registry import PREFETCH, prefetcher
from tests.helpers.scenarios import decisions, random_scenario
from tracekit.errors import PolicyError

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


def target_of(past: Past, layer: int, distance: int, layers: int) -> tuple[int, int]:
    """The layer that is looked ahead to, and how many steps later."""
    later, target = divmod(layer + distance, layers)
    return target, later


def wrapped_previous_token(past: Past, layer: int, distance: int, layers: int, count: int) -> list[int]:
    return past[-1][target_of(past, layer, distance, layers)[0]][:count]


def wrapped_popular(past: Past, layer: int, distance: int, layers: int, count: int) -> list[int]:
    target = target_of(past, layer, distance, layers)[0]
    chosen = Counter(expert for step in past for expert in step[target])
    return sorted(chosen, key=lambda expert: (-chosen[expert], expert))[:count]


def wrapped_markov(past: Past, layer: int, distance: int, layers: int, count: int) -> list[int]:
    """What the target layer demanded in the steps after those in which this layer demanded what it demands now."""
    target, here = target_of(past, layer, distance, layers)[0], past[-1][layer]
    together = Counter(
        there for step, after in pairwise(past) for mine in step[layer] if mine in here for there in after[target]
    )
    return sorted(together, key=lambda expert: (-together[expert], expert))[:count]


def wrapped_history(past: Past, layer: int, distance: int, layers: int, count: int) -> list[int]:
    """What the step after the most similar one demanded."""
    target, now = target_of(past, layer, distance, layers)[0], past[-1]
    shared = [
        (sum(len(set(now[seen]) & set(step[seen])) for seen in range(layer + 1)), age)
        for age, step in enumerate(past[:-1])
    ][-63:]
    most, age = max(shared, default=(0, 0))
    return sorted(past[age + 1][target])[:count] if most else []


WRAPPED = {
    "previous-token": wrapped_previous_token,
    "popular": wrapped_popular,
    "markov": wrapped_markov,
    "history": wrapped_history,
}
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
            elif distance <= layers:
                target = layer + distance - layers
                found = subject.suggest(target, np.full(0, -1, np.int32), out)
                suggested = (out[:found] - target * experts).tolist()
                assert suggested == WRAPPED[name](past, layer, distance, layers, count), (len(past), layer)


@pytest.mark.parametrize("name", REFERENCES)
def test_compiled_equals_interpreted(name: str) -> None:
    for seed in range(25):
        scenario = random_scenario(seed, "lru", name)
        assert decisions(scenario) == decisions(scenario, compiled=False)
        wrapped = replace(scenario.spec, wrap=True, distance=min(scenario.spec.distance, scenario.spec.layers))
        assert decisions(scenario, wrapped) == decisions(scenario, wrapped, compiled=False)


def test_who_knows_nothing_of_the_next_step_is_not_asked_about_it() -> None:
    names = {name for name in PREFETCH if prefetcher(name).wraps}
    assert names == {"previous-token", "popular", "markov", "history", "oracle"}
    spec = random_scenario(1, "lru", "gate", wrap=True).spec
    with pytest.raises(PolicyError, match=r"'gate' knows nothing of the next step: without prefetch\.wrap"):
        ExpertCache(spec, compiled=False)
    with pytest.raises(PolicyError, match="looks past the next step"):
        ExpertCache(replace(spec, prefetch="markov", distance=spec.layers + 1), compiled=False)
