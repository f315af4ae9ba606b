"""Where a miss is computed and what is admitted: against a slow reference, entry by entry, and what must hold of it."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.cache_state import PINNED, RESIDENT
from policies.conformance import check
from policies.events import KINDS, MOST_SLOTS, NO_SLOT, Events
from policies.registry import ADMISSION
from tests.helpers.reference_cache import (
    ADMIT,
    BYPASS,
    EVICT,
    HIT,
    HOST,
    LOAD,
)
from tests.helpers.scenarios import Scenario, decisions, random_scenario, with_misses, with_pinned
from tests.helpers.thorough import THOROUGH
from tracekit.errors import PolicyError

SEEDS = st.integers(0, 2**32 - 1)
PAIRS = [("lru", "gate", False), ("lfu", "gate", True), ("belady", "none", False)]


@pytest.mark.parametrize(("eviction", "prefetch", "into_cache"), PAIRS)
@settings(max_examples=60 * THOROUGH, deadline=None)
@given(seed=SEEDS, chunk=st.integers(1, 200))
def test_events_equal_the_reference(eviction: str, prefetch: str, into_cache: bool, seed: int, chunk: int) -> None:
    scenario = with_misses(random_scenario(seed, eviction, prefetch, into_cache=into_cache), seed)
    _, expected = scenario.reference()
    assert [event[:3] for event in decisions(scenario, chunk=chunk)] == expected


@settings(max_examples=40 * THOROUGH, deadline=None)
@given(seed=SEEDS)
def test_interpreted_and_compiled_decide_alike(seed: int) -> None:
    scenario = with_misses(random_scenario(seed, "lru", "gate"), seed)
    assert decisions(scenario) == decisions(scenario, compiled=False)


@settings(max_examples=60 * THOROUGH, deadline=None)
@given(seed=SEEDS, pinned=st.booleans())
def test_visit_by_visit_and_never_above_capacity(seed: int, pinned: bool) -> None:
    """As the engine asks; hits and misses are all lookups; what is pinned never leaves."""
    scenario = with_misses(random_scenario(seed, "lru", "gate"), seed)
    scenario = with_pinned(scenario, seed) if pinned else scenario
    spec, cache, found = scenario.spec, ExpertCache(scenario.spec), []
    asked = zip(scenario.references(), scenario.hints(), scenario.weights(), strict=True)
    for (layer, chosen), hint, weights in asked:
        demand = list(dict.fromkeys(chosen))
        recency = list(dict.fromkeys(reversed(chosen)))[::-1]
        counts = Counter(chosen)
        gate = [sum(w for e, w in zip(chosen, weights, strict=True) if e == expert) for expert in demand]
        tokens = [counts[expert] for expert in demand] if spec.counts_tokens else []
        events = cache.visit(layer, demand, recency, hint, (), tokens, gate if spec.admission == "score" else [])
        found += events.rows()
        assert np.count_nonzero(events.kind <= ADMIT) == len(demand)
        resident = np.flatnonzero(cache.state.place & RESIDENT)
        used = np.bincount(cache.state.group_of[resident // spec.experts], spec.size[resident], len(spec.capacity))
        assert (used <= cache.state.capacity).all()
        assert set(np.flatnonzero(cache.state.place & PINNED)) == set(spec.pinned)
    assert found == decisions(scenario)


@settings(max_examples=40 * THOROUGH, deadline=None)
@given(seed=SEEDS)
def test_no_more_is_admitted_than_may_be(seed: int) -> None:
    """Of a step, and of each of its layers where they share: prefetches have a budget of their own."""
    scenario = with_misses(random_scenario(seed, "lru", "gate", into_cache=True), seed)
    spec = scenario.spec
    if spec.per_step is None:
        return
    kept = Counter(visit for visit, kind, *_ in decisions(scenario) if kind in (LOAD, ADMIT))
    layers, limit = spec.layers, spec.per_step
    for step in range(len(scenario.step_rows())):
        of_layers = [kept[step * layers + layer] for layer in range(layers)]
        assert sum(of_layers) <= limit
        if spec.even:
            assert all(
                number <= limit * (layer + 1) // layers - limit * layer // layers
                for layer, number in enumerate(of_layers)
            )


@settings(max_examples=30 * THOROUGH, deadline=None)
@given(seed=SEEDS, limit=st.integers(0, 8))
def test_a_looser_limit_admits_no_less_at_a_step(seed: int, limit: int) -> None:
    """From one and the same state. Over many steps a looser limit may miss less, and then has less to admit."""
    scenario = random_scenario(seed, "lru")
    layers, visits = scenario.spec.layers, scenario.references()
    cache = ExpertCache(replace(scenario.spec, per_step=limit), compiled=False)

    def admitted(by: ExpertCache, asked: list[tuple[int, list[int]]]) -> int:
        kinds = [by.visit(layer, list(dict.fromkeys(chosen))).kind for layer, chosen in asked]
        return sum(int((kind == LOAD).sum()) for kind in kinds)

    for first in range(0, len(visits), layers):
        looser, step = copy.deepcopy(cache), visits[first : first + layers]
        assert looser._misses is not None
        looser._misses = looser._misses._replace(per_step=limit + 1)
        given = admitted(cache, step)
        assert given <= limit and given <= admitted(looser, step) <= given + 1


def test_nothing_differs_where_nothing_is_asked() -> None:
    for seed in range(30):
        scenario = random_scenario(seed, "lru", "gate")
        asked = replace(scenario.spec, per_step=1 << 30, most_tokens=(0,) * scenario.spec.layers, where="auto")
        assert decisions(scenario) == decisions(Scenario(scenario.trace, asked))


def small(**fields: object) -> ExpertCache:
    return ExpertCache(CacheSpec(2, 4, (2, 2), np.ones(8, np.int64), **fields), compiled=False)  # type: ignore[arg-type]


def visit(cache: ExpertCache, layer: int, demand: list[int], **how: list[float]) -> list[tuple[int, int]]:
    events = cache.visit(layer, demand, **how)  # type: ignore[arg-type]
    return list(zip(events.kind.tolist(), events.expert.tolist(), strict=True))


def test_on_the_host_what_is_admitted_is_copied_meanwhile() -> None:
    """Two slots: two are admitted, the third has no room beside them and is computed where it lies."""
    cache = small(where="host")
    assert visit(cache, 0, [0, 1, 2]) == [(ADMIT, 0), (ADMIT, 1), (HOST, 2)]
    assert visit(cache, 0, [1, 3]) == [(HIT, 1), (EVICT, 0), (ADMIT, 3)]


def test_of_a_split_the_most_tokens_are_copied() -> None:
    """Half of three is rounded up: two are copied, the one of five tokens and, of equal ones, the first."""
    cache = small(where="split", copied=500_000)
    assert visit(cache, 0, [0, 1, 2], tokens=[2, 2, 5]) == [(LOAD, 0), (HOST, 1), (LOAD, 2)]
    assert visit(cache, 1, [0], tokens=[1]) == [(LOAD, 4)]


def test_by_its_tokens_a_miss_is_the_hosts() -> None:
    cache = small(where="auto", most_tokens=(1, 3))
    assert visit(cache, 0, [0, 1], tokens=[1, 2]) == [(ADMIT, 0), (LOAD, 1)]
    assert visit(cache, 1, [0, 1], tokens=[3, 4]) == [(ADMIT, 4), (LOAD, 5)]


def test_the_second_miss_is_kept_and_leaving_forgets() -> None:
    cache = small(admission="second-miss")
    assert [visit(cache, 0, [0]) for _ in range(3)] == [[(BYPASS, 0)], [(LOAD, 0)], [(HIT, 0)]]
    for expert in (1, 1, 2, 2):
        visit(cache, 0, [expert])
    assert visit(cache, 0, [0]) == [(BYPASS, 0)]


def test_what_has_little_of_the_gates_weight_is_not_kept() -> None:
    cache = small(admission="score", admission_parameters={"threshold": 0.5})
    assert visit(cache, 0, [0, 1], gate=[0.3, 0.1]) == [(LOAD, 0), (BYPASS, 1)]
    assert visit(cache, 1, [0, 1], gate=[0.0, 0.0]) == [(BYPASS, 4), (BYPASS, 5)]


def test_admissions_are_a_steps_and_are_not_saved_up() -> None:
    cache = small(per_step=1)
    assert visit(cache, 0, [0, 1]) == [(LOAD, 0), (BYPASS, 1)]
    assert visit(cache, 1, [0]) == [(BYPASS, 4)]
    assert visit(cache, 0, [0]) == [(HIT, 0)]
    visit(cache, 1, [])
    assert visit(cache, 0, [1, 2]) == [(LOAD, 1), (BYPASS, 2)]


def test_a_remainder_goes_to_a_later_layer() -> None:
    """One admission of two layers is the second one's; three are one and two."""
    assert [visit(small(per_step=1, even=True), layer, [0]) for layer in (0, 1)] == [[(BYPASS, 0)], [(LOAD, 4)]]
    cache = small(per_step=3, even=True)
    assert visit(cache, 0, [0, 1]) == [(LOAD, 0), (BYPASS, 1)] and visit(cache, 1, [0, 1]) == [(LOAD, 4), (LOAD, 5)]


def test_a_miss_of_the_host_has_no_slot() -> None:
    events = small(where="host", per_step=0).visit(0, [0])
    assert events.rows() == [(0, HOST, 0, -1)] and events.unpacked() == [(HOST, 0, NO_SLOT)]


@pytest.mark.parametrize("name", sorted(set(ADMISSION) - {"always"}))
def test_the_built_in_ones_keep_the_contract(name: str) -> None:
    reports = [report for report in check(name) if report.kind == "admission"]
    assert len(reports) == 1 and reports[0].passed, reports


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"where": "moon"}, "copy or host or split or auto, not 'moon'"),
        ({"where": "split"}, "how many are copied"),
        ({"where": "auto"}, "a number for each layer"),
        ({"admission": "skore"}, "unknown admission policy 'skore'; did you mean 'score'"),
        ({"admission": "score", "admission_parameters": {"threshold": 2}}, "threshold = 2 is not between 0 and 1"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        small(**fields)


def test_kinds_and_slots_are_held_whole() -> None:
    """The largest of each beside the largest of all others."""
    rows = [(0, kind, 2**31 - 1 - kind, slot) for kind in range(KINDS) for slot in (0, MOST_SLOTS - 1, -1)]
    rows += [(0, 15, 0, MOST_SLOTS - 1)]
    events = Events.of(rows, 1)
    assert (events.code >= 0).all()
    assert events.rows() == rows
