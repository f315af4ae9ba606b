"""Pinned experts: there from the start, never gone, and no policy's business."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache import ExpertCache
from policies.cache_state import PINNED, RESIDENT, SLOT
from policies.conformance.scenario import Scenario, scenarios
from policies.events import BYPASS, HIT_PINNED
from policies.eviction.base import EvictionPolicy
from policies.registry import EVICTION, eviction_policy, hooks
from tests.helpers.scenarios import decisions, random_scenario, with_pinned
from tracekit.errors import CapacityError

SCENARIOS = [scenario.beside_pinned(seed) for seed, scenario in enumerate(scenarios(40))]
SEEDS = st.integers(0, 2**32 - 1)
UNFITTED = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]


def cache_of(scenario: Scenario, eviction: str, *, compiled: bool) -> ExpertCache:
    spec = scenario.spec(eviction, "gate")
    if eviction_policy(eviction).reads == "next-use":
        spec = replace(spec, into_cache=False)
    return ExpertCache(spec, compiled=compiled)


def test_the_scenarios_pin_experts_that_are_demanded() -> None:
    wanted = [v.layer * s.experts + e for s in SCENARIOS for v in s.visits for e in v.demand if s.pinned]
    assert sum(len(s.pinned) > 0 for s in SCENARIOS) > 20
    assert len(wanted) > 100


@pytest.mark.parametrize("eviction", sorted(EVICTION))
def test_no_policy_hears_of_a_pinned_expert(eviction: str) -> None:
    """Neither in a hook nor among the residents that it may look through; and what it decides is what it decides
    compiled. A policy told of a reference to what it never saw inserted may loop for ever."""
    heard: set[int] = set()
    for scenario in SCENARIOS:
        cache = cache_of(scenario, eviction, compiled=False)
        policy = cache._eviction

        def told(name: str, policy: EvictionPolicy = policy) -> None:
            hook = getattr(policy, name)

            def spy(*arguments: object) -> object:
                heard.add(int(arguments[2 if name == "victim" else 0]))  # type: ignore[call-overload]
                return hook(*arguments)

            vars(policy)[name] = spy

        for name in hooks(EvictionPolicy):
            told(name)
        heard.clear()
        signal = eviction_policy(eviction).reads
        with np.errstate(all="ignore"):
            events = cache.run(scenario.batch(signal, "lookahead"))
        assert not heard & set(scenario.pinned)
        state = cache.state
        for group, first in enumerate(state.first[:-1]):
            shown = state.resident[first : first + state.resident_count[group]].tolist()
            assert not set(shown) & set(scenario.pinned)
        assert (
            events.rows() == cache_of(scenario, eviction, compiled=True).run(scenario.batch(signal, "lookahead")).rows()
        )


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, eviction=st.sampled_from(UNFITTED), into_cache=st.booleans())
def test_pinned_experts_never_leave(seed: int, eviction: str, into_cache: bool) -> None:
    """They hit by `pinned` at every lookup, and no other expert does; lookups are hits and misses."""
    into_cache = into_cache and eviction_policy(eviction).reads != "next-use"
    scenario = with_pinned(random_scenario(seed, eviction, "gate", into_cache=into_cache), seed)
    spec, found = scenario.spec, decisions(scenario, compiled=False)
    pinned = set(spec.pinned)
    assert all((kind == HIT_PINNED) == (key in pinned) for _, kind, key, _ in found)
    lookups = sum(kind <= BYPASS for _, kind, _, _ in found)
    assert lookups == sum(len(set(chosen)) for _, chosen in scenario.references())


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_what_is_pinned_keeps_its_slot_and_residents_keep_to_the_capacity(seed: int) -> None:
    scenario = with_pinned(random_scenario(seed, "lru"), seed)
    cache = ExpertCache(scenario.spec, compiled=False)
    before = {key: int(cache.state.place[key]) for key in scenario.spec.pinned}
    for layer, chosen in scenario.references():
        cache.visit(layer, list(dict.fromkeys(chosen)))
        state = cache.state
        assert {key: int(state.place[key]) for key in scenario.spec.pinned} == before
        resident = np.flatnonzero(state.place & (RESIDENT | PINNED))
        groups = state.group_of[resident // scenario.spec.experts]
        held = np.bincount(groups, scenario.spec.size[resident], minlength=len(scenario.spec.capacity))
        assert (held <= np.array(scenario.spec.capacity)).all()
    assert all(place & PINNED and 0 <= place >> SLOT < cache.slots for place in before.values())


def test_more_pinned_than_fits_is_refused() -> None:
    spec = replace(random_scenario(0).spec, layers=2, experts=4, capacity=(1, 4), size=np.ones(8, np.int64))
    ExpertCache(replace(spec, pinned=(0, 4, 5, 6, 7)), compiled=False)
    with pytest.raises(CapacityError, match=r"expert 1 of MoE layer 0.*that layer more capacity"):
        ExpertCache(replace(spec, pinned=(0, 1)), compiled=False)
    with pytest.raises(CapacityError, match="the cache more capacity"):
        ExpertCache(replace(spec, capacity=(1,), pinned=(0, 1)), compiled=False)
