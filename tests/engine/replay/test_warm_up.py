"""Tokens that warm up: decided and timed, and in no figure; bounds that know what is counted."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan.plan import plan_from_dict
from engine.replay.bounds import clairvoyant, fewest_decode_loads, free_steps
from engine.replay.passes import Replayed, Steps, Target, run
from engine.replay.replay import replay, warm_up_steps
from engine.simulator.timeline import USEFUL
from policies.events import BYPASS, HIT_PREFETCHED, LOAD
from tests.helpers.scenarios import decisions, memory_trace, random_scenario
from tests.helpers.timelines import random_costs
from tracekit.errors import PlanError
from tracekit.rows import DECODE

SEEDS = st.integers(0, 2**32 - 1)


def passes(seed: int, tokens: int, prefetch: str = "gate") -> tuple[Replayed, Replayed, int, Any]:
    """A pass that counts everything, one that leaves out the first tokens, how many steps these are, the scenario."""
    scenario = random_scenario(seed, "lru", prefetch)
    steps = Steps.of(scenario.trace)
    skipped = warm_up_steps(scenario.trace, steps, min(tokens, int(steps.starts[-2])))
    targets = [Target((3,) * scenario.spec.layers, random_costs(scenario.spec.layers, seed)._replace(paced_by=()))]
    (whole,) = run(scenario.trace, scenario.spec, targets, keep=True)
    (part,) = run(scenario.trace, scenario.spec, targets, keep=True, warm_up=skipped)
    return whole, part.counted(skipped), skipped, scenario


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, tokens=st.integers(0, 30))
def test_what_is_counted_is_the_rest(seed: int, tokens: int) -> None:
    """Every figure is that of the events and times behind the warm-up, added up here from all of them."""
    whole, part, skipped, scenario = passes(seed, tokens)
    layers, experts = scenario.spec.layers, scenario.spec.experts
    rest = [row for row in decisions(scenario) if row[0] >= skipped * layers]
    for kind, count in enumerate(part.kinds.sum(axis=0).tolist()):
        assert count == sum(row[1] == kind for row in rest)
    loads = np.zeros((2, layers), np.int64)
    for visit, kind, key, _ in rest:
        if kind in (LOAD, BYPASS):
            loads[whole.phase[visit // layers], key // experts] += 1
    assert (part.demand_loads == loads).all()
    assert part.step_ns.tolist() == whole.step_ns[skipped:].tolist()
    assert part.visit_end.tolist() == whole.visit_end[skipped * layers :].tolist()
    assert part.timeline is not None and whole.timeline is not None
    assert part.timeline.spent.sum(axis=0).tolist() == whole.spent[skipped:].sum(axis=0).tolist()
    assert part.timeline.link_busy_ns <= whole.timeline.link_busy_ns
    used = sum(kind == HIT_PREFETCHED for _, kind, *_ in rest)
    assert part.timeline.prefetches[: USEFUL + 2].sum() == used
    if skipped == 0:
        assert part.timeline.link_busy_ns == whole.timeline.link_busy_ns
        assert (part.timeline.prefetches == whole.timeline.prefetches).all()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, tokens=st.integers(0, 30), eviction=st.sampled_from(["lru", "lfu", "belady-bypass"]))
def test_nothing_beats_the_bound_of_what_is_counted(seed: int, tokens: int, eviction: str) -> None:
    """Not Belady either, who may spare where nobody counts."""
    scenario = random_scenario(seed, eviction)
    spec = scenario.spec
    size = np.ones(spec.layers * spec.experts, np.int64)
    by = clairvoyant(spec)
    by = type(by)(spec.layers, spec.experts, spec.capacity, size, "belady-bypass", staging=spec.staging)
    steps = Steps.of(scenario.trace)
    skipped = warm_up_steps(scenario.trace, steps, min(tokens, int(steps.starts[-2])))
    own = type(by)(spec.layers, spec.experts, spec.capacity, size, eviction, staging=spec.staging)
    (done,) = run(scenario.trace, own, warm_up=skipped)
    (best,) = run(scenario.trace, by, reshape=lambda demand: free_steps(demand, skipped, ()), warm_up=skipped)
    assert done.counted(skipped).hit_ratio <= best.counted(skipped).hit_ratio + 1e-12
    fewest = fewest_decode_loads(scenario.trace, by, warm_up=skipped)
    assert fewest.loads.sum() <= done.demand_loads[DECODE].sum()


def test_a_result_says_what_it_did_not_count() -> None:
    trace = memory_trace(np.tile(np.arange(4, dtype=np.uint16)[:, None, None], (1, 2, 1)), [4, 4])
    plan = plan_from_dict({"cache": {"capacity": "4/layer"}})
    result = replay(trace, plan, warm_up=2)
    assert result.provenance["warm_up"] == {"tokens": 2, "steps": 2}
    assert (result.tokens, result.lookups, result.hits) == (2, 4, 0)
    assert replay(trace, plan).provenance["warm_up"] == {"tokens": 0, "steps": 0}
    with pytest.raises(PlanError, match=r"a warm-up of 4 tokens leaves nothing to count: .* holds 4"):
        replay(trace, plan, warm_up=4)
    with pytest.raises(PlanError, match="give 0 or more"):
        replay(trace, plan, warm_up=-1)
