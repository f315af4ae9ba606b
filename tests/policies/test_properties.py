"""What holds for every policy: counting, inclusion, Belady's bound, a peer's caches, and no peeking."""

from dataclasses import replace

import cachetools
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.cache_spec import CacheSpec
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tests.helpers.reference_cache import BYPASS, EVICT, LOAD
from tests.helpers.reference_cache import PREFETCH as PREFETCHED
from tests.helpers.scenarios import Recorded, Scenario, decisions, memory_trace, random_scenario, slots_of

SEEDS = st.integers(0, 2**32 - 1)
# Those that read a fitted predictor are tested with one, in tests/engine/decisions/test_foresight.py.
EVICTION_NAMES = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]
PREFETCH_NAMES = [name for name in sorted(PREFETCH) if prefetcher(name).reads != "predicted"]


def hits(events: Recorded) -> set[tuple[int, int]]:
    """Lookups (visit, key) that hit."""
    return {(visit, key) for visit, kind, key, _ in events if kind < LOAD}


def largest_demand(scenario: Scenario) -> int:
    return max(len(set(chosen)) for _, chosen in scenario.references())


@pytest.mark.parametrize(("eviction", "prefetch"), [("lru", "gate"), ("lfu", "none"), ("belady", "gate")])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_every_distinct_expert_of_a_visit_is_one_lookup(eviction: str, prefetch: str, seed: int) -> None:
    scenario = random_scenario(seed, eviction, prefetch)
    lookups = [(visit, key) for visit, kind, key, _ in decisions(scenario) if kind <= BYPASS]
    experts = scenario.spec.experts
    expected = [
        (visit, layer * experts + expert)
        for visit, (layer, chosen) in enumerate(scenario.references())
        for expert in set(chosen)
    ]
    assert sorted(lookups) == sorted(expected)


@pytest.mark.parametrize("per_layer", [False, True], ids=["global", "layer"])
@pytest.mark.parametrize("eviction", ["lru", "belady"])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, extra=st.integers(0, 6))
def test_a_larger_cache_hits_whatever_a_smaller_one_hits(eviction: str, per_layer: bool, seed: int, extra: int) -> None:
    """Stack policies, as long as a visit's demand fits."""
    scenario = random_scenario(seed, eviction)
    capacity = max(1, largest_demand(scenario)) + extra
    small = decisions(scenario, slots_of(scenario, capacity, per_layer=per_layer))
    large = decisions(scenario, slots_of(scenario, capacity + 1, per_layer=per_layer))
    assert hits(small) <= hits(large)


@pytest.mark.parametrize("per_layer", [False, True], ids=["global", "layer"])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, extra=st.integers(0, 6))
def test_belady_hits_most(per_layer: bool, seed: int, extra: int) -> None:
    """With experts of equal size and demand that fits, no policy that must insert beats it."""
    scenario = random_scenario(seed, "belady")
    spec = slots_of(scenario, max(1, largest_demand(scenario)) + extra, per_layer=per_layer)
    best = len(hits(decisions(scenario, spec)))
    for eviction in ("lru", "lfu", "lfu-perfect"):
        assert len(hits(decisions(scenario, replace(spec, eviction=eviction)))) <= best


@pytest.mark.parametrize("eviction", EVICTION_NAMES)
def test_nobody_beats_belady_with_bypassing(eviction: str) -> None:
    """With experts of equal size, whatever the demand: the bound may keep anything that a policy may."""
    for seed in range(60):
        scenario = random_scenario(seed)
        slots = replace(scenario.spec, size=np.ones_like(scenario.spec.size), staging=1)
        found = {
            name: len(hits(decisions(scenario, replace(slots, eviction=name), compiled=False)))
            for name in (eviction, "belady-bypass")
        }
        assert found[eviction] <= found["belady-bypass"], seed


@pytest.mark.parametrize("eviction", [name for name in EVICTION_NAMES if name not in ("static", "belady-bypass")])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
@example(seed=360)
def test_nothing_bypasses_while_an_idle_expert_could_go(eviction: str, seed: int) -> None:
    """With experts of equal size: whoever must insert streams only what is more than the visit's cache can hold."""
    scenario = random_scenario(seed, eviction)
    parameters = {"small_share": 0.5, "move_at": 1} if eviction == "s3fifo" else {}  # or its small queue holds nothing
    spec = replace(scenario.spec, size=np.ones_like(scenario.spec.size), eviction_parameters=parameters)
    scenario = replace(scenario, spec=spec)
    layers, experts = scenario.spec.layers, scenario.spec.experts
    demands = [{layer * experts + expert for expert in chosen} for layer, chosen in scenario.references()]
    per_layer = len(scenario.spec.capacity) > 1
    resident: set[int] = set()
    for visit, kind, key, _ in decisions(scenario, compiled=False):
        if kind == LOAD:
            resident.add(key)
        elif kind == EVICT:
            resident.remove(key)
        elif kind == BYPASS:
            group = {other for other in resident if not per_layer or other // experts == visit % layers}
            assert group <= demands[visit]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, extra=st.integers(0, 6))
def test_prefetching_never_saves_copies_over_belady(seed: int, extra: int) -> None:
    scenario = random_scenario(seed, "belady")
    spec = slots_of(scenario, max(1, largest_demand(scenario)) + extra)
    fewest = sum(kind in (LOAD, BYPASS) for _, kind, _, _ in decisions(scenario, spec))
    for into_cache in (False, True):
        ahead = replace(spec, eviction="lru", prefetch="oracle", into_cache=into_cache)
        assert sum(kind in (LOAD, BYPASS, PREFETCHED) for _, kind, _, _ in decisions(scenario, ahead)) >= fewest


@pytest.mark.parametrize(
    ("eviction", "peer"), [("lru", cachetools.LRUCache), ("lfu", cachetools.LFUCache)], ids=["lru", "lfu"]
)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, capacity=st.integers(1, 12))
def test_one_expert_per_visit_hits_as_cachetools_does(
    eviction: str, peer: type[cachetools.Cache[int, int]], seed: int, capacity: int
) -> None:
    """cachetools breaks ties of LFU by least recent use, as we do; sizes count for both."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 4, 12) if eviction == "lru" else np.ones(12, np.int64)
    picks = np.minimum(rng.geometric(0.2, 150) - 1, 11)
    trace = memory_trace(picks.astype(np.uint16).reshape(-1, 1, 1), [12])
    scenario = Scenario(trace, CacheSpec(1, 12, (capacity,), size, eviction))
    found = [kind < LOAD for _, kind, _, _ in decisions(scenario) if kind <= BYPASS]
    cache = peer(capacity, getsizeof=lambda expert: int(size[expert]))
    expected = []
    for pick in picks.tolist():
        expected.append(pick in cache)
        if pick in cache:
            cache[pick]
        elif size[pick] <= capacity:
            cache[pick] = pick
    assert found == expected


def changed_after(scenario: Scenario, step: int, seed: int) -> Scenario:
    """The same scenario with another future: routing and lookahead behind `step` are shuffled."""
    trace = scenario.trace
    rng = np.random.default_rng(seed)
    later = trace.step > step
    experts = trace.experts.copy()
    for layer, number in enumerate(trace.manifest.experts_per_layer):
        for row in np.flatnonzero(later):
            picked = rng.permutation(number)[: trace.top_k]
            experts[row, layer, : len(picked)] = picked
    (distance,) = trace.lookahead_distances
    logits = trace.lookahead(distance)
    assert logits is not None
    logits = logits.copy()
    logits[later] = rng.permuted(logits[later], axis=2)
    per_layer = list(trace.manifest.experts_per_layer)
    return replace(scenario, trace=memory_trace(experts, per_layer, trace.step, {distance: logits}))


def peeks(eviction: str, prefetch: str, seed: int, *, wrap: bool = False) -> bool:
    """Whether a changed future changes an earlier decision; with `wrap` prefetching goes on into the next step."""
    scenario = random_scenario(seed, eviction, prefetch)
    if wrap:
        spec = scenario.spec
        scenario = replace(scenario, spec=replace(spec, wrap=True, distance=min(spec.distance, spec.layers)))
    steps = list(dict.fromkeys(scenario.trace.step.tolist()))
    last = steps[len(steps) // 2]
    known = (steps.index(last) + 1) * scenario.spec.layers
    other = changed_after(scenario, last, seed)
    before = [event for event in decisions(scenario, compiled=False) if event[0] < known]
    after = [event for event in decisions(other, compiled=False) if event[0] < known]
    return before != after


@pytest.mark.parametrize("name", EVICTION_NAMES)
def test_eviction_peeks_only_if_it_is_a_bound(name: str) -> None:
    assert any(peeks(name, "none", seed) for seed in range(40)) == eviction_policy(name).bound


@pytest.mark.parametrize("name", [name for name in PREFETCH_NAMES if prefetcher(name).wraps])
def test_prefetching_for_the_next_step_peeks_only_if_it_is_a_bound(name: str) -> None:
    assert any(peeks("lru", name, seed, wrap=True) for seed in range(40)) == prefetcher(name).bound


@pytest.mark.parametrize("name", PREFETCH_NAMES)
def test_prefetch_does_not_peek_at_later_steps(name: str) -> None:
    """Even the oracle knows the current step only."""
    assert not any(peeks("lru", name, seed) for seed in range(40))
