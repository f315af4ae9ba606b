"""What holds of every timeline: it adds up, respects its bounds, and what less of a cost does to it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.reference_cache import DROP, EVICT, HIT_PREFETCHED, PREFETCH
from tests.helpers.scenarios import random_scenario
from tests.helpers.timelines import costs_of, random_costs, timed

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, cause=st.sampled_from(["rest_ns", "dense_ns", "layer_overhead_ns", "readback_ns", "step_ns"]))
def test_without_prefetching_less_of_anything_is_never_slower(seed: int, cause: str) -> None:
    scenario = random_scenario(seed)
    costs = random_costs(scenario.spec.layers, seed)
    cheaper = replace(costs, **{cause: getattr(costs, cause) // 2})
    assert (timed(scenario, cheaper)[0] <= timed(scenario, costs)[0]).all()


@pytest.mark.parametrize(
    "into_cache",
    [
        pytest.param(False, id="staging"),
        pytest.param(True, id="cache"),
    ],
)
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_every_prefetch_is_useful_late_wasted_or_still_unused(into_cache: bool, seed: int) -> None:
    scenario = random_scenario(seed, "lru", "gate", into_cache=into_cache)
    _, timeline, pieces = timed(scenario, costs_of(scenario.spec.layers))
    unused: set[int] = set()
    requested = 0
    for _, events in pieces:
        for kind, key in zip(events.kind.tolist(), events.expert.tolist(), strict=True):
            if kind == PREFETCH:
                requested += 1
                unused.add(key)
            elif kind <= HIT_PREFETCHED or kind in (EVICT, DROP):
                unused.discard(key)
    assert timeline.prefetches.sum() + len(unused) == requested
