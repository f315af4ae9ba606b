"""Decisions against a slow reference, entry by entry, on thousands of small random traces."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.cache_state import VISITS
from tests.helpers.reference_cache import (
    BYPASS,
    DROP,
    EVICT,
    HIT_PREFETCHED,
    LOAD,
    PREFETCH,
    Event,
    ReferenceCache,
)
from tests.helpers.scenarios import Recorded, decisions, random_scenario
from tracekit.errors import PolicyError

SEEDS = st.integers(0, 2**32 - 1)
EVICTION = ("lru", "lfu", "lfu-perfect", "belady")
PAIRS = [*((policy, prefetch) for policy in EVICTION for prefetch in ("none", "gate")), ("lru", "oracle")]


def without_slots(events: Recorded) -> list[Event]:
    return [event[:3] for event in events]


def assert_slots_consistent(events: Recorded, cache: ReferenceCache) -> None:
    """A slot holds one expert at a time; loads go to free slots; hits are where the expert is."""
    holds: dict[int, int] = {}
    current = 0
    for visit, kind, key, slot in events:
        for past in range(current, visit):
            # What was staged, used and found no room to stay leaves its slot without an event of its own.
            holds = {s: k for s, k in holds.items() if k not in cache.vanished[past]}
        current = visit
        assert 0 <= slot < cache.slots
        if kind == PREFETCH and key in cache.vanished[visit]:  # wanted again a step later
            holds = {s: k for s, k in holds.items() if k != key}
            cache.vanished[visit].discard(key)
        if kind in (LOAD, BYPASS, PREFETCH):
            assert slot not in holds or holds[slot] in cache.vanished[visit]
            assert key not in holds.values()
            holds[slot] = key
            if kind == BYPASS:
                del holds[slot]
        else:
            assert holds[slot] == key
            if kind in (EVICT, DROP):
                del holds[slot]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 200))
def test_events_equal_the_reference(pair: tuple[str, str], seed: int, chunk: int) -> None:
    scenario = random_scenario(seed, *pair)
    cache, expected = scenario.reference()
    found = decisions(scenario, chunk=chunk)
    assert without_slots(found) == expected
    assert_slots_consistent(found, cache)


@pytest.mark.parametrize("prefetch", ["gate", "oracle"])
@pytest.mark.parametrize("eviction", ["lru", "lfu", "lfu-perfect"])
@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 200))
def test_events_equal_the_reference_when_prefetching_into_the_cache(
    eviction: str, prefetch: str, seed: int, chunk: int
) -> None:
    scenario = random_scenario(seed, eviction, prefetch, into_cache=True)
    cache, expected = scenario.reference()
    found = decisions(scenario, chunk=chunk)
    assert without_slots(found) == expected
    assert_slots_consistent(found, cache)


@pytest.mark.parametrize("into_cache", [False, True], ids=["staging", "cache"])
@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 200), eviction=st.sampled_from(["lru", "lfu"]))
def test_events_equal_the_reference_when_prefetching_for_the_next_step(
    into_cache: bool, seed: int, chunk: int, eviction: str
) -> None:
    """The last layers prefetch for the first ones; what is staged waits there, over the end of the step."""
    scenario = random_scenario(seed, eviction, "oracle", into_cache=into_cache, wrap=True)
    spec = scenario.spec
    scenario = replace(scenario, spec=replace(spec, distance=min(spec.distance, spec.layers)))
    cache, expected = scenario.reference()
    found = decisions(scenario, chunk=chunk)
    assert without_slots(found) == expected
    assert_slots_consistent(found, cache)


@pytest.mark.parametrize("into_cache", [False, True], ids=["staging", "cache"])
@pytest.mark.parametrize("pair", [("lru", "oracle"), ("lfu", "gate")], ids="-".join)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_interpreted_and_compiled_policies_decide_alike(pair: tuple[str, str], into_cache: bool, seed: int) -> None:
    scenario = random_scenario(seed, *pair, into_cache=into_cache)
    assert decisions(scenario) == decisions(scenario, compiled=False)


def test_interpreted_and_compiled_belady_decide_alike() -> None:
    for seed in range(40):
        scenario = random_scenario(seed, "belady", "gate")
        assert decisions(scenario) == decisions(scenario, compiled=False)


@pytest.mark.parametrize("into_cache", [False, True], ids=["staging", "cache"])
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_visit_by_visit_equals_the_reference_and_never_exceeds_capacity(into_cache: bool, seed: int) -> None:
    scenario = random_scenario(seed, "lru", "gate", into_cache=into_cache)
    spec = scenario.spec
    cache = ExpertCache(spec)
    reference, expected = scenario.reference()
    assert cache.slots == reference.slots
    found: Recorded = []
    for (layer, chosen), hint in zip(scenario.references(), scenario.hints(), strict=True):
        demand = list(dict.fromkeys(chosen))
        recency = list(dict.fromkeys(reversed(chosen)))[::-1]
        found += cache.visit(layer, demand, recency, hint).rows()
        resident = np.flatnonzero(cache.state.place & 1)
        group = cache.state.group_of[resident // spec.experts]
        used = np.bincount(group, weights=spec.size[resident], minlength=len(spec.capacity))
        assert (used == cache.state.used).all()
        assert (used <= np.array(spec.capacity)).all()
        assert np.count_nonzero(cache.state.place & 2) <= spec.staging
    assert without_slots(found) == expected
    assert_slots_consistent(found, reference)
    assert set(np.flatnonzero(cache.state.place & 1)) == set(reference.kept)
    assert set(np.flatnonzero(cache.state.place & 2)) == set(reference.staged)


def small_cache(eviction: str, capacity: int, layers: int = 1, prefetch: str = "none", **fields: object) -> ExpertCache:
    size = np.ones(layers * 4, np.int64)
    settings = {"eviction": eviction, "prefetch": prefetch} | fields
    return ExpertCache(CacheSpec(layers, 4, (capacity,), size, **settings), compiled=False)  # type: ignore[arg-type]


def events_of(cache: ExpertCache, layer: int, demand: list[int], **how: list[int]) -> list[tuple[int, int]]:
    """Kind and key of each event of one visit."""
    events = cache.visit(layer, demand, **how)
    return list(zip(events.kind.tolist(), events.expert.tolist(), strict=True))


def test_perfect_lfu_counts_streamed_lookups() -> None:
    """Two slots; expert 2 is looked up three times, twice in passing; expert 0 twice. So 0 goes, not 2."""
    cache = small_cache("lfu-perfect", 2)
    assert events_of(cache, 0, [0, 1, 2]) == [(LOAD, 0), (LOAD, 1), (BYPASS, 2)]
    events_of(cache, 0, [0, 3, 2])
    events_of(cache, 0, [2])
    assert events_of(cache, 0, [3]) == [(EVICT, 0), (LOAD, 3)]


@pytest.mark.parametrize("eviction", ["lfu", "lfu-perfect"])
def test_a_prefetch_is_not_a_lookup(eviction: str) -> None:
    """Key 4 is prefetched but never looked up; key 0 was looked up once. Key 4 goes."""
    cache = small_cache(eviction, 2, layers=2, prefetch="gate", into_cache=True)
    assert events_of(cache, 0, [0], hint=[0]) == [(LOAD, 0), (PREFETCH, 4)]
    assert events_of(cache, 1, [1]) == [(EVICT, 4), (LOAD, 5)]


def test_a_prefetched_expert_is_a_prefetched_hit_once() -> None:
    cache = small_cache("lru", 4, layers=2, prefetch="gate")
    events_of(cache, 0, [0], hint=[2])
    assert events_of(cache, 1, [2]) == [(HIT_PREFETCHED, 6)]
    assert events_of(cache, 1, [2]) == [(0, 6)]


def test_a_repeated_expert_refreshes_recency_in_order_of_last_reference() -> None:
    """Tokens choose 0, 1, 0: expert 1 is then the older one, although 0 was seen first."""
    cache = small_cache("lru", 2)
    events_of(cache, 0, [0, 1], recency=[1, 0])
    assert events_of(cache, 0, [2]) == [(EVICT, 1), (LOAD, 2)]


def test_demand_takes_the_buffer_of_the_oldest_prefetch() -> None:
    """No cache, two buffers, both holding prefetches for layer 2: streaming at layer 1 drops the older."""
    cache = small_cache("lru", 0, layers=3, prefetch="gate", distance=2, staging=2)
    assert events_of(cache, 0, [0], hint=[0, 1]) == [(BYPASS, 0), (PREFETCH, 8), (PREFETCH, 9)]
    assert events_of(cache, 1, [0]) == [(DROP, 8), (BYPASS, 4)]


def test_more_visits_than_can_be_told_apart_are_refused() -> None:
    """The mark of a visit has 32 bits: were it to wrap around, a visit's own experts would lose their protection."""
    cache = small_cache("lru", 2)
    cache.state.clock[VISITS] = 2**32 - 2
    assert events_of(cache, 0, [1])
    with pytest.raises(PolicyError, match="at most 4294967295 visits"):
        cache.visit(0, [1])
