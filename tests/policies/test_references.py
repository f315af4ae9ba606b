"""Every eviction policy against its slow reference, entry by entry, on random small traces."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.cache_spec import CacheSpec
from policies.registry import EVICTION
from tests.helpers.reference_cache import EVICT, LOAD, Event
from tests.helpers.reference_policies import REFERENCES
from tests.helpers.scenarios import Recorded, Scenario, decisions, memory_trace, random_scenario, slots_of, with_pinned

SEEDS = st.integers(0, 2**32 - 1)
PARAMETERS: dict[str, tuple[Mapping[str, float], ...]] = {
    "lru-k": ({}, {"k": 1}, {"k": 3}, {"k": 4}),
    "s3fifo": ({}, {"small_share": 0.4, "move_at": 1}, {"small_share": 0.5, "ghost_share": 0.3}),
    "random": ({}, {"seed": 1}, {"seed": 123456789}),
}
NAMES = sorted(REFERENCES)
# The bounds refuse prefetching into the cache, and ties of `belady-bypass` decide what prefetches find there already.
WITH_PREFETCH = [name for name in NAMES if name != "belady-bypass"]


def without_slots(events: Recorded) -> list[Event]:
    return [event[:3] for event in events]


def busy_scenario(seed: int, eviction: str) -> Scenario:
    """More tokens, fewer of them in a step, and a cache smaller than demand: there is always somebody to evict."""
    rng = np.random.default_rng(seed)
    layers, experts = int(rng.integers(1, 4)), int(rng.integers(3, 13))
    top_k = int(rng.choice([1, 1, 2, 3]))
    tokens = int(rng.integers(40, 120))
    popularity = np.arange(1, experts + 1) ** -rng.uniform(0, 1.5)
    scores = np.log(popularity) + rng.gumbel(size=(tokens, layers, experts))
    chosen = np.argsort(-scores, axis=2)[:, :, :top_k].astype(np.uint16)
    # Some bursts: what was wanted lately is wanted again.
    for token in range(1, tokens):
        if rng.random() < 0.3:
            chosen[token] = chosen[token - int(rng.integers(1, min(token, 12) + 1))]
    trace = memory_trace(chosen, [experts] * layers, np.cumsum(rng.random(tokens) < 0.9).astype(np.int32))
    size = rng.integers(1, 4, layers * experts) if rng.random() < 0.3 else np.ones(layers * experts, np.int64)
    groups = layers if rng.random() < 0.5 else 1
    members = int(size.sum()) // groups
    capacity = tuple(int(rng.integers(1, members + 1)) for _ in range(groups))
    choices = PARAMETERS.get(eviction, ({},))
    parameters = choices[int(rng.integers(len(choices)))]
    return Scenario(trace, CacheSpec(layers, experts, capacity, size, eviction, parameters))


def assert_as_reference(scenario: Scenario) -> None:
    """Entry by entry; what two policies leave open is compared as far as they fix it."""
    eviction = scenario.spec.eviction
    if eviction == "belady-bypass":
        # Of unequal sizes it says only that it is a heuristic then; ties may go either way, which costs no visit a hit.
        scenario = replace(scenario, spec=replace(scenario.spec, size=np.ones_like(scenario.spec.size)))
    found = without_slots(decisions(scenario, compiled=False))
    if eviction == "random":
        drawn = [key for _, kind, key in found if kind == EVICT]
        assert found == scenario.reference(victims=drawn)[1]
    elif eviction == "belady-bypass":
        expected = scenario.reference()[1]
        assert [visit for visit, kind, _ in found if kind < LOAD] == [
            visit for visit, kind, _ in expected if kind < LOAD
        ]
    else:
        assert found == scenario.reference()[1]


def test_every_reference_is_of_a_policy() -> None:
    assert set(REFERENCES) <= set(EVICTION)


@pytest.mark.parametrize("eviction", NAMES)
@settings(max_examples=200, deadline=None)
@given(seed=SEEDS)
@example(seed=216983792)
def test_events_equal_the_reference(eviction: str, seed: int) -> None:
    assert_as_reference(busy_scenario(seed, eviction))


@pytest.mark.parametrize("into_cache", [False, True], ids=["staging", "cache"])
@pytest.mark.parametrize("eviction", WITH_PREFETCH)
@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_events_equal_the_reference_when_prefetching(eviction: str, into_cache: bool, seed: int) -> None:
    if into_cache and eviction == "belady":
        pytest.skip("refused: the next use of what is not demanded is unknown")
    assert_as_reference(random_scenario(seed, eviction, "gate", into_cache=into_cache))


@pytest.mark.parametrize("eviction", NAMES)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_events_equal_the_reference_beside_pinned_experts(eviction: str, seed: int) -> None:
    scenario = busy_scenario(seed, eviction)
    if eviction == "belady-bypass":  # as above: before anything is pinned, so that it fits
        scenario = replace(scenario, spec=replace(scenario.spec, size=np.ones_like(scenario.spec.size)))
    assert_as_reference(with_pinned(scenario, seed))


@pytest.mark.parametrize("into_cache", [False, True], ids=["staging", "cache"])
@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, eviction=st.sampled_from(WITH_PREFETCH))
def test_events_equal_the_reference_when_prefetching_beside_pinned_experts(
    into_cache: bool, seed: int, eviction: str
) -> None:
    if not (into_cache and eviction == "belady"):
        assert_as_reference(with_pinned(random_scenario(seed, eviction, "gate", into_cache=into_cache), seed))


@pytest.mark.parametrize("eviction", NAMES)
def test_compiled_policies_decide_as_interpreted_ones(eviction: str) -> None:
    for seed in range(30):
        scenario = busy_scenario(seed, eviction)
        assert decisions(scenario) == decisions(scenario, compiled=False), seed
        scenario = with_pinned(scenario, seed)
        assert decisions(scenario) == decisions(scenario, compiled=False), seed


@pytest.mark.parametrize("eviction", NAMES)
def test_the_scenarios_are_worth_comparing(eviction: str) -> None:
    """Hits, evictions and re-loads in plenty, or the comparisons above would compare nothing."""
    found = [event for seed in range(10) for event in decisions(busy_scenario(seed, eviction), compiled=False)]
    kinds = [kind for _, kind, _, _ in found]
    assert kinds.count(EVICT) > 100
    assert sum(kind < LOAD for kind in kinds) > 100


def most_hits(visits: list[frozenset[int]], capacity: int) -> int:
    """The most hits of any schedule, by trying every set that may be kept after every visit."""

    @cache
    def best(visit: int, kept: frozenset[int]) -> int:
        if visit == len(visits):
            return 0
        reachable = sorted(kept | visits[visit])
        keep = min(capacity, len(reachable))
        later = max(best(visit + 1, frozenset(choice)) for choice in combinations(reachable, keep))
        return len(kept & visits[visit]) + later

    return best(0, frozenset())


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_belady_with_bypassing_is_optimal(seed: int) -> None:
    """Against exhaustive search, also where a visit demands more than fits."""
    rng = np.random.default_rng(seed)
    experts, top_k = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    tokens = int(rng.integers(2, 13))
    chosen = np.argsort(rng.random((tokens, 1, experts)), axis=2)[:, :, :top_k].astype(np.uint16)
    scenario = Scenario(
        memory_trace(chosen, [experts]), CacheSpec(1, experts, (1,), np.ones(experts, np.int64), "belady-bypass")
    )
    for capacity in range(1, experts):
        found = decisions(scenario, slots_of(scenario, capacity), compiled=False)
        visits = [frozenset(chosen) for _, chosen in scenario.references()]
        assert sum(kind < LOAD for _, kind, _, _ in found) == most_hits(visits, capacity)


def random_slots(seed: int, tokens: int = 8_000) -> np.ndarray:
    """The slots that `random` empties where 24 experts go through 8 slots in turn."""
    chosen = (np.arange(tokens) % 24).astype(np.uint16).reshape(-1, 1, 1)
    scenario = Scenario(
        memory_trace(chosen, [24]), CacheSpec(1, 24, (8,), np.ones(24, np.int64), "random", {"seed": seed})
    )
    return np.array([slot for _, kind, _, slot in decisions(scenario, compiled=False) if kind == EVICT])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**61])
def test_random_empties_every_slot_equally_often(seed: int) -> None:
    """Each slot's share of the evictions is an eighth, give or take four sigmas; so is the next one's, after each."""
    slots = random_slots(seed)
    pairs = np.bincount(slots[:-1] * 8 + slots[1:], minlength=64)
    for counts in (np.bincount(slots, minlength=8), pairs):
        expected = counts.sum() / len(counts)
        assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


def test_random_is_reproducible_by_its_seed() -> None:
    assert (random_slots(3, 200) == random_slots(3, 200)).all()
    assert not (random_slots(3, 200)[:50] == random_slots(4, 200)[:50]).all()
