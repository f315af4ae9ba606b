"""What holds of every timeline: it adds up, respects its bounds, and what less of a cost does to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.simulator.timeline import CAUSES, STALLS
from tests.helpers.reference_cache import BYPASS, DROP, EVICT, HIT_PREFETCHED, LOAD, PREFETCH
from tests.helpers.scenarios import random_scenario, with_misses
from tests.helpers.timelines import FEATURES, Script, random_costs, timed

SEEDS = st.integers(0, 2**32 - 1)
SOME_FEATURES = st.sets(st.sampled_from(FEATURES))


@pytest.mark.parametrize("prefetch", ["gate", "none"])
@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, features=SOME_FEATURES)
def test_every_nanosecond_of_a_step_is_booked_once(prefetch: str, seed: int, features: set[str]) -> None:
    scenario = random_scenario(seed, "lru", prefetch)
    run = timed(scenario, random_costs(scenario.spec.layers, seed, features), 10)
    assert run.spent.min() >= 0
    step_end = run.end[scenario.spec.layers - 1 :: scenario.spec.layers]
    assert run.spent.sum(axis=1).tolist() == np.diff(step_end, prepend=0).tolist()
    assert run.timeline.spent.sum(axis=0).tolist() == run.spent.sum(axis=0).tolist()
    for feature, cause in (("cpu", "cpu"), ("disk", "disk"), ("dequantisation", "dequantisation")):
        if feature not in features:
            assert not run.spent[:, CAUSES.index(cause)].any()


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, features=SOME_FEATURES)
def test_no_run_is_faster_than_its_parts(seed: int, features: set[str]) -> None:
    """Compute alone; every demand load over the wire; every read; what the CPU computes."""
    scenario = random_scenario(seed)
    costs = random_costs(scenario.spec.layers, seed, features)
    run = timed(scenario, costs)
    elapsed = run.end[-1]
    assert run.spent[:, :STALLS].sum() <= elapsed
    assert run.timeline.cpu_busy_ns <= elapsed
    loads = [
        key // scenario.spec.experts
        for _, events in run.pieces
        for kind, key in zip(events.kind.tolist(), events.expert.tolist(), strict=True)
        if kind in (LOAD, BYPASS)
    ]
    assert costs.rest_ns[loads, 0].sum() <= run.timeline.link_busy_ns <= elapsed
    assert costs.least_link_ns[loads].sum() <= run.timeline.link_busy_ns
    assert run.timeline.disk_busy_ns <= elapsed


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, features=SOME_FEATURES)
def test_where_the_host_computes_every_nanosecond_is_booked_once(seed: int, features: set[str]) -> None:
    scenario = with_misses(random_scenario(seed, "lru", "gate"), seed)
    run = timed(scenario, random_costs(scenario.spec.layers, seed, features | {"cpu"}), 10)
    step_end = run.end[scenario.spec.layers - 1 :: scenario.spec.layers]
    assert run.spent.min() >= 0
    assert run.spent.sum(axis=1).tolist() == np.diff(step_end, prepend=0).tolist()
    assert run.timeline.cpu_busy_ns <= run.end[-1]


TIMED_BY_ORDER = ["engines", "disk", "dequantisation", "fused"]
CHEAPER = ["rest_ns", "setup_ns", "dense_ns", "expert_ns", "dequant_ns", "read_ns", "copy_overhead_ns"]
CHEAPER += ["expert_token_ps", "expert_overhead_ns", "layer_overhead_ns", "readback_ns", "step_ns"]
CHEAPER += ["context_ps", "call_ns"]


@settings(max_examples=300, deadline=None)
@given(seed=SEEDS, cost=st.sampled_from(CHEAPER), features=st.sets(st.sampled_from(TIMED_BY_ORDER)))
def test_without_prefetching_less_of_anything_is_never_slower(seed: int, cost: str, features: set[str]) -> None:
    """Copies then have one order, so that every time is a maximum of sums of costs. (Copies slowed by reads are left
    out: an earlier copy may meet a read that a later one would not.)"""
    scenario = random_scenario(seed)
    costs = random_costs(scenario.spec.layers, seed, features)._replace(slowdown_percent=0)
    cheaper = costs._replace(**{cost: getattr(costs, cost) // 2})
    assert (timed(scenario, cheaper).end <= timed(scenario, costs).end).all()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_a_second_engine_is_never_slower_without_prefetching(seed: int) -> None:
    scenario = random_scenario(seed)
    costs = random_costs(scenario.spec.layers, seed, {"engines"})
    one = costs._replace(copy_engines=1)
    assert (timed(scenario, costs).end <= timed(scenario, one).end).all()


def wrong_guesses(copy: int, chunks: int = 1) -> Script:
    """Both prefetches are wrong: A was loaded, B and C are copied ahead, and layer 1 demands its A.

    The fixed part of layer 1 lasts 17: the gate's choice is known 20 after A has arrived.
    """
    pieces = np.full((2, chunks), copy // chunks, np.int64)
    return Script(
        [[(LOAD, 0, 0), (PREFETCH, 1, 1), (PREFETCH, 2, 2)], [(DROP, 1, 1), (DROP, 2, 2), (LOAD, 0, 3)]],
        dense_ns=np.array([5, 17], np.int64),
        chunks=np.array([chunks, chunks], np.int64),
        chunk_ns=pieces,
        rest_ns=pieces[:, ::-1].cumsum(axis=1)[:, ::-1],
    )


def test_a_faster_link_may_be_slower() -> None:
    """An anomaly of Graham's kind (1969, SIAM J. Appl. Math. 17(2)), as small as it gets; docs/design.md draws it.

    20 ns a copy  compute  0-5 dense, 25-28 A | 28-45 dense, 65-68 A'
                  link     5-25 A, 25-45 B ahead, 45-65 A'; C never begins: at 45 demand goes first
    18 ns a copy  compute  0-5 dense, 23-26 A | 26-43 dense, 77-80 A'
                  link     5-23 A, 23-41 B ahead, 41-59 C ahead, 59-77 A'
    In chunks the demand load waits for one of them at most. The faster link still loses with two chunks to a copy:
                  link     5-23 A, 23-41 B ahead, 41-50 half of C, 50-68 A'
    and wins with six:
                  link     5-23 A, 23-41 B ahead, 41-44 a sixth of C, 44-62 A'
    """
    assert wrong_guesses(20).end[-1] == 68
    assert wrong_guesses(18).end[-1] == 80
    assert wrong_guesses(20, chunks=2).end[-1] == 68
    assert wrong_guesses(18, chunks=2).end[-1] == 71
    assert wrong_guesses(18, chunks=6).end[-1] == 65


@settings(max_examples=100, deadline=None)
@given(copy=st.integers(2, 60), faster=st.integers(1, 59), chunks=st.sampled_from([1, 2, 3, 6]))
def test_a_faster_link_loses_one_chunk_at_most_to_a_wrong_guess(copy: int, faster: int, chunks: int) -> None:
    """Of this scenario: A arrives sooner, and A' waits for one chunk of a guess at most."""
    slow, fast = (wrong_guesses(chunks * ns, chunks).end[-1] for ns in (copy, min(faster, copy)))
    assert fast <= slow + min(faster, copy)


@pytest.mark.parametrize("into_cache", [False, True])
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, features=SOME_FEATURES)
def test_every_prefetch_is_useful_late_wasted_or_still_unused(into_cache: bool, seed: int, features: set[str]) -> None:
    scenario = random_scenario(seed, "lru", "gate", into_cache=into_cache)
    run = timed(scenario, random_costs(scenario.spec.layers, seed, features))
    unused: set[int] = set()
    requested = 0
    for _, events in run.pieces:
        for kind, key in zip(events.kind.tolist(), events.expert.tolist(), strict=True):
            if kind == PREFETCH:
                requested += 1
                unused.add(key)
            elif kind <= HIT_PREFETCHED or kind in (EVICT, DROP):
                unused.discard(key)
    assert run.timeline.prefetches.sum() + len(unused) == requested
