"""Caches that start anew with each request, and caches that are warm: as by replaying the parts, and as the reference.

What a reset means is that nothing of a request reaches the next: its decisions are those of the request alone. What a
warm start means is that the cache goes on where another trace left it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.hints import iter_hints
from engine.decisions.run import first_cache, iter_decisions
from policies.cache_spec import CacheSpec
from policies.events import BYPASS, DROP, EVICT, HIT_PREFETCHED
from policies.registry import EVICTION, PREFETCH, eviction_policy, prefetcher
from tests.helpers.reference_policies import REFERENCES
from tests.helpers.scenarios import (
    Recorded,
    Scenario,
    decisions,
    memory_trace,
    on_disk,
    random_scenario,
    with_requests,
)
from tracekit.demand import iter_demand
from tracekit.errors import PlanError

SEEDS = st.integers(0, 2**32 - 1)
EVICTION_NAMES = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]
PREFETCH_NAMES = [name for name in sorted(PREFETCH) if prefetcher(name).reads != "predicted"]
POLICIES = st.sampled_from(EVICTION_NAMES)
PREFETCHERS = st.sampled_from(PREFETCH_NAMES)
ALLOWS_CACHE = {name for name in EVICTION_NAMES if eviction_policy(name).reads != "next-use"}


EXACT = sorted(set(REFERENCES) - {"random", "belady-bypass"})
"""References that give every event: of `random` the draws are told, and of two useless experts either may stay."""


def drawn(seed: int, eviction: str, prefetch: str, into_cache: bool, wrap: bool) -> Scenario:
    """A scenario by these policies, prefetching into the cache and past the last layer where that is possible."""
    scenario = random_scenario(seed, eviction, prefetch, into_cache=into_cache and eviction in ALLOWS_CACHE)
    spec = scenario.spec
    wrap = wrap and prefetcher(prefetch).wraps
    distance = min(spec.distance, spec.layers) if wrap else spec.distance
    return replace(scenario, spec=replace(spec, wrap=wrap, distance=distance))


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    eviction=POLICIES,
    prefetch=PREFETCHERS,
    into_cache=st.booleans(),
    wrap=st.booleans(),
    chunk=st.integers(1, 200),
    pinned=st.booleans(),
)
def test_after_a_reset_a_request_is_alone(
    seed: int, eviction: str, prefetch: str, into_cache: bool, wrap: bool, chunk: int, pinned: bool
) -> None:
    """Every policy and prefetcher: decisions, slots included, are those of each request's own trace, but that at its
    begin what the one before it left behind leaves, in order of slots; pinned experts stay."""
    scenario = drawn(seed, eviction, prefetch, into_cache, wrap)
    if pinned and eviction == "static" and scenario.spec.capacity[0] >= scenario.spec.size[0]:
        scenario = replace(scenario, spec=replace(scenario.spec, pinned=(0,)))
    if prefetch == "oracle" and wrap:
        return  # its last step of a request knows the next request's first: see the reference's test
    whole, alone = with_requests(scenario, seed)
    found = decisions(replace(whole, spec=replace(whole.spec, reset=True)), chunk=chunk, compiled=False)
    expected: Recorded = []
    holds: dict[int, int] = {}  # slot -> key, not pinned
    first = 0
    for part in alone:
        own = [(visit + first, kind, key, slot) for visit, kind, key, slot in decisions(part, compiled=False)]
        hits = 0
        while hits < len(own) and own[hits][0] == first and own[hits][1] <= HIT_PREFETCHED:
            hits += 1
        at_begin = [event for event in found if event[0] == first]
        gone = at_begin[hits : len(at_begin) - sum(event[0] == first for event in own[hits:])]
        # What leaves is what is there: as the events say, but for what was used and found no room to stay.
        assert [slot for *_, slot in gone] == sorted(slot for *_, slot in gone)
        assert all(kind in (EVICT, DROP) and holds[slot] == key for _, kind, key, slot in gone)
        expected += [*own[:hits], *gone, *own[hits:]]
        holds = {}
        for _, kind, key, slot in own:
            if kind in (EVICT, DROP):
                del holds[slot]
            elif key not in scenario.spec.pinned and kind != BYPASS:
                holds[slot] = key
        first += len(part.references())
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    eviction=st.sampled_from(EXACT),
    prefetch=st.sampled_from(["none", "gate", "oracle"]),
    into_cache=st.booleans(),
    wrap=st.booleans(),
)
def test_resets_equal_the_reference(seed: int, eviction: str, prefetch: str, into_cache: bool, wrap: bool) -> None:
    """The slow cache is thrown away with each request; what it held has to leave."""
    scenario = drawn(seed, eviction, prefetch, into_cache, wrap)
    whole, alone = with_requests(scenario, seed)
    found = decisions(replace(whole, spec=replace(whole.spec, reset=True)), compiled=False)
    hints, left, first = whole.hints(), set[int](), 0
    future = [{layer * whole.spec.experts + expert for expert in chosen} for layer, chosen in whole.references()]
    expected: list[tuple[int, int, int]] = []
    for part in alone:
        cache, _ = part.reference()
        cache = type(cache)(
            *(cache.layers, cache.experts, cache.capacity, cache.size, eviction),
            staging=cache.staging,
            into_cache=cache.into_cache,
            distance=cache.distance,
            count=cache.count,
            wrap=cache.wrap,
            future=future[first : first + len(part.references())],
            parameters=whole.spec.eviction_parameters,
        )
        for number, (layer, chosen) in enumerate(part.references()):
            events = [(first + kept[0], *kept[1:]) for kept in cache.visit(layer, chosen, hints[first + number])]
            if number == 0 and left:
                at_begin = [event[:3] for event in found if event[0] == first][: len(left)]
                assert {key for _, _, key in at_begin} == left
                events = [*at_begin, *events]
            expected += events
        first += len(part.references())
        left = {*cache.kept, *cache.staged}
    assert [event[:3] for event in found] == expected


@pytest.mark.parametrize("eviction", EVICTION_NAMES)
def test_compiled_decisions_are_the_interpreted_ones(eviction: str, tmp_path: Path) -> None:
    for seed in range(12):
        drawn_one = random_scenario(seed, eviction, "previous-token", wrap=seed % 2 == 0, distance=1)
        scenario, _ = with_requests(drawn_one, seed)
        for spec in (replace(scenario.spec, reset=True), replace(scenario.spec, warm=str(tmp_path / f"{seed}.trace"))):
            if spec.warm is not None:
                on_disk(scenario, Path(spec.warm))
            assert decisions(scenario, spec) == decisions(scenario, spec, compiled=False), seed


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    eviction=st.sampled_from(sorted(ALLOWS_CACHE)),
    prefetch=PREFETCHERS,
    into_cache=st.booleans(),
    wrap=st.booleans(),
    chunk=st.integers(1, 200),
)
def test_a_warm_cache_goes_on_where_another_trace_left_it(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    eviction: str,
    prefetch: str,
    into_cache: bool,
    wrap: bool,
    chunk: int,
) -> None:
    """Every policy and prefetcher: two traces, one warming for the other, decide as both in one."""
    if prefetch == "oracle":
        wrap = False  # at the end of the first trace it knows the second's beginning only where both are one
    scenario = drawn(seed, eviction, prefetch, into_cache, wrap)
    trace = scenario.trace
    steps = np.flatnonzero(np.diff(trace.step, prepend=trace.step[0])) if trace.tokens else []
    cut = int(steps[len(steps) // 2]) if len(steps) else 0
    if cut == 0 or (prefetcher(prefetch).reads == "lookahead" and scenario.spec.distance >= scenario.spec.layers):
        return
    ahead = {distance: trace.lookahead(distance) for distance in trace.lookahead_distances}

    def part(rows: slice) -> Scenario:
        of_rows = {distance: logits[rows] for distance, logits in ahead.items() if logits is not None}
        per_layer = trace.manifest.experts_per_layer
        made = memory_trace(trace.experts[rows], per_layer, trace.step[rows], of_rows, trace.phase[rows])
        return replace(scenario, trace=made)

    first, second = part(slice(0, cut)), part(slice(cut, None))
    path = tmp_path_factory.mktemp("warm") / "first.trace"
    on_disk(first, path)
    skipped = len(first.references())
    expected = [(visit - skipped, *rest) for visit, *rest in decisions(scenario, compiled=False) if visit >= skipped]
    found = decisions(second, replace(second.spec, warm=str(path)), chunk=chunk, compiled=False)
    assert [tuple(event) for event in expected] == found


def test_a_clairvoyant_cache_is_warm_with_what_it_wants(tmp_path: Path) -> None:
    """No policy that is warmed by any trace hits more often, where experts are of one size."""

    def hits(scenario: Scenario, spec: CacheSpec, eviction: str) -> int:
        found = decisions(scenario, replace(spec, eviction=eviction), compiled=False)
        return sum(kind <= HIT_PREFETCHED for _, kind, *_ in found)

    for seed in range(60):
        scenario = random_scenario(seed)
        size = np.ones(scenario.spec.layers * scenario.spec.experts, np.int64)
        path = tmp_path / f"{seed}.trace"
        on_disk(scenario, path)
        spec = replace(scenario.spec, size=size, warm=str(path))
        best = hits(scenario, spec, "belady-bypass")
        assert all(hits(scenario, spec, name) <= best for name in ("lru", "lfu", "fifo", "random"))
        assert hits(scenario, replace(spec, warm=None), "belady-bypass") <= best


def test_given_hints_are_cut_with_the_requests() -> None:
    for seed in range(40):
        scenario, _ = with_requests(random_scenario(seed, "lru", "gate"), seed)
        spec = replace(scenario.spec, reset=True)
        demands = list(iter_demand(scenario.trace, 20))
        pieces = iter_decisions(
            scenario.trace, spec, demands=demands, hints=iter_hints(scenario.trace, spec, demands), compiled=False
        )
        assert [row for _, events in pieces for row in events.rows()] == decisions(scenario, spec, compiled=False)


def test_requests_that_share_steps_or_take_turns_are_refused() -> None:
    scenario = random_scenario(3)
    experts = np.zeros((4, 1, 1), np.uint16)
    for step, request in (([0, 0, 1, 1], [0, 1, 0, 1]), ([0, 1, 2, 3], [0, 1, 0, 1])):
        trace = memory_trace(experts, [1], np.array(step, np.int32), request=np.array(request, np.int32))
        spec = replace(scenario.spec, layers=1, experts=1, capacity=(1,), size=np.ones(1, np.int64), reset=True)
        with pytest.raises(PlanError, match=r'cache.warm = "reset": .*do not follow one another.*--batch-size 1'):
            list(iter_decisions(trace, spec, compiled=False))


def test_a_warm_trace_is_of_the_same_model(tmp_path: Path) -> None:
    scenario = random_scenario(3)
    on_disk(scenario, tmp_path / "w.trace")
    spec = replace(scenario.spec, warm=str(tmp_path / "w.trace"))
    assert first_cache(spec, compiled=False).state.clock[0] > 0
    with pytest.raises(PlanError, match=r"cache.warm: .*w.trace is of .* MoE layers"):
        first_cache(
            replace(spec, layers=spec.layers + 1, capacity=(3,), size=np.ones((spec.layers + 1) * spec.experts))
        )
