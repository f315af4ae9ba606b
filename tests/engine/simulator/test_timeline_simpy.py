"""The timeline against an independent SimPy model: every event of random scenarios, to the nanosecond."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.scenarios import Scenario, random_scenario, with_domains, with_misses, with_pinned, with_requests
from tests.helpers.simpy_model import Machine
from tests.helpers.thorough import THOROUGH
from tests.helpers.timelines import FEATURES, comparable, random_costs, seen, simpy_visits, timed

SEEDS = st.integers(0, 2**32 - 1)
ALWAYS = range(1 << 40)
VARIANTS = [
    ("lru", "gate", False),
    ("lru", "gate", True),
    ("lru", "oracle", False),
    ("lru", "none", False),
    ("belady-bypass", "none", False),  # may evict what its visit demands
]
ACROSS_STEPS = [  # prefetching into the cache, for the next step, and a cache that starts anew with each request
    ("oracle", False, True, False),
    ("markov", True, True, False),
    ("none", False, False, True),
    ("previous-token", True, True, True),
]


@pytest.mark.parametrize(("eviction", "prefetch", "into_cache"), VARIANTS)
@settings(max_examples=120 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
# A prefetch that waits for the disk is given up: what waited behind it cannot have begun before that.
@example(seed=4754, chunk=50, features={"cpu", "engines", "chunks", "disk", "dequantisation"})
def test_every_event_is_at_its_time(
    eviction: str, prefetch: str, into_cache: bool, seed: int, chunk: int, features: set[str]
) -> None:
    assert_timed_alike(random_scenario(seed, eviction, prefetch, into_cache=into_cache), seed, chunk, features)


@pytest.mark.parametrize(("prefetch", "into_cache", "wrap", "reset"), ACROSS_STEPS)
@settings(max_examples=50 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
def test_every_event_is_at_its_time_across_steps_and_requests(
    prefetch: str, into_cache: bool, wrap: bool, reset: bool, seed: int, chunk: int, features: set[str]
) -> None:
    scenario = random_scenario(seed, "lru", prefetch, into_cache=into_cache, wrap=wrap, reset=reset)
    if wrap:
        spec = scenario.spec
        scenario = replace(scenario, spec=replace(spec, distance=min(spec.distance, spec.layers)))
    if reset:
        scenario, _ = with_requests(scenario, seed)
    assert_timed_alike(scenario, seed, chunk, features)


@pytest.mark.parametrize("prefetch", ["none", "gate"])
@settings(max_examples=40 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
def test_every_event_is_at_its_time_beside_pinned_experts(
    prefetch: str, seed: int, chunk: int, features: set[str]
) -> None:
    assert_timed_alike(with_pinned(random_scenario(seed, "lru", prefetch), seed), seed, chunk, features)


@pytest.mark.parametrize("prefetch", ["none", "gate"])
@settings(max_examples=25 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
def test_every_event_is_at_its_time_where_domains_switch(
    prefetch: str, seed: int, chunk: int, features: set[str]
) -> None:
    assert_timed_alike(with_domains(random_scenario(seed, "lru", prefetch), seed, warm=True), seed, chunk, features)


def assert_timed_alike(scenario: Scenario, seed: int, chunk: int, features: set[str]) -> None:
    """Timeline and SimPy model have the same events at the same times."""
    costs = random_costs(scenario.spec.layers, seed, features)
    run = timed(scenario, costs, chunk, ALWAYS)
    rows = [tuple(row) for row in run.timeline.log.tolist()]
    visits = simpy_visits(scenario, run.pieces)
    machine = Machine(costs, scenario.spec.experts, visits)
    assert machine.run() == run.end.tolist()
    assert comparable(seen(rows)) == comparable(seen(machine.rows))
    # Neither the log nor the size of the pieces changes anything.
    silent = timed(scenario, costs)
    assert silent.end.tolist() == run.end.tolist()
    assert (silent.spent == run.spent).all()
    assert silent.timeline.link_busy_ns == run.timeline.link_busy_ns
    assert len(silent.timeline.log) == 0


@settings(max_examples=120 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
@pytest.mark.parametrize(("eviction", "prefetch"), [("lru", "none"), ("lru", "gate"), ("belady-bypass", "none")])
def test_every_event_is_at_its_time_where_the_host_computes(
    eviction: str, prefetch: str, seed: int, chunk: int, features: set[str]
) -> None:
    scenario = with_misses(random_scenario(seed, eviction, prefetch), seed)
    assert_timed_alike(scenario, seed, chunk, features | {"cpu"})


def test_a_log_of_some_steps_is_the_log_of_all_steps_there() -> None:
    scenario = random_scenario(7, "lru", "gate")
    costs = random_costs(scenario.spec.layers, 7, set(FEATURES))
    everything = timed(scenario, costs, log=ALWAYS).timeline.log
    steps = int(scenario.trace.step[-1]) + 1
    parts = [timed(scenario, costs, 5, range(step, step + 1)).timeline.log for step in range(steps)]
    assert (np.concatenate(parts) == everything).all()
    assert timed(scenario, costs, log=range(steps, steps + 5)).timeline.log.shape == (0, 8)
