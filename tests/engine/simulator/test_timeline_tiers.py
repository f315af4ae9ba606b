"""Times of experts in two formats: against the SimPy model, and at the ends where one format is all there is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.simulator.costs import Costs
from engine.simulator.timeline import CAUSES
from policies.cache_spec import LowCopies
from tests.helpers.simpy_model import Machine
from tests.helpers.thorough import THOROUGH
from tests.helpers.tiers import tiered_scenario
from tests.helpers.timelines import FEATURES, comparable, random_costs, seen, simpy_visits, timed

SEEDS = st.integers(0, 2**32 - 1)
ALWAYS = range(1 << 40)
OF_EXPERTS = ("expert_ns", "dequant_ns", "chunks", "chunk_ns", "rest_ns", "read_ns", "lanes_ns", "cpu_expert_ns")


def both(layers: int, experts: int, seed: int, features: set[str]) -> Costs:
    """A random machine on which each copy of each layer costs what it costs."""
    return random_costs(2 * layers, seed, features)._replace(low=layers * experts)


@pytest.mark.parametrize(("prefetch", "into_cache"), [("none", False), ("gate", False), ("gate", True)])
@settings(max_examples=60 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 100), features=st.sets(st.sampled_from(FEATURES)))
def test_every_event_is_at_its_time(prefetch: str, into_cache: bool, seed: int, chunk: int, features: set[str]) -> None:
    scenario = tiered_scenario(seed, prefetch, into_cache=into_cache)
    costs = both(scenario.spec.layers, scenario.spec.experts, seed, features)
    run = timed(scenario, costs, chunk, ALWAYS)
    rows = [tuple(row) for row in run.timeline.log.tolist()]
    machine = Machine(costs, scenario.spec.experts, simpy_visits(scenario, run.pieces))
    assert machine.run() == run.end.tolist()
    assert comparable(seen(rows)) == comparable(seen(machine.rows))
    silent = timed(scenario, costs)
    assert silent.end.tolist() == run.end.tolist()
    assert int(silent.spent.sum()) == int(run.end[-1]), "every nanosecond is booked once"
    expanded = int(silent.spent[:, CAUSES.index("dequantisation")].sum())
    on_device = [key for demand, _ in run.pieces for key in demand.keys.tolist()]
    assert expanded == sum(int(costs.dequant_ns[key // scenario.spec.experts]) for key in on_device)


@settings(max_examples=40 * THOROUGH, deadline=None)
@given(seed=SEEDS, features=st.sets(st.sampled_from(FEATURES)))
def test_one_tier_alone_takes_as_long_as_a_plan_of_its_format(seed: int, features: set[str]) -> None:
    scenario = tiered_scenario(seed)
    spec, low = scenario.spec, scenario.spec.low
    assert low is not None
    layers = spec.layers
    costs = both(layers, spec.experts, seed, features)

    def alone(part: slice) -> Costs:
        cut = {name: getattr(costs, name)[part] for name in OF_EXPERTS}
        return costs._replace(**cut, expert_bytes=costs.expert_bytes[part], low=None)

    def at(threshold: float) -> LowCopies:
        return replace(low, rule="miss-below", parameters={"threshold": threshold}, popularity=None)

    for threshold, part, capacity in ((0.0, slice(layers), spec.capacity), (2.0, slice(layers, None), low.capacity)):
        tiered = timed(replace(scenario, spec=replace(spec, low=at(threshold))), costs)
        single = timed(replace(scenario, spec=replace(spec, low=None, capacity=capacity)), alone(part))
        np.testing.assert_array_equal(tiered.end, single.end)
        np.testing.assert_array_equal(tiered.spent, single.spent)
