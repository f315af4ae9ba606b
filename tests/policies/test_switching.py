"""Switching between domains: by the rules alone, and for every policy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.run import iter_decisions
from policies.cache_spec import CacheSpec, reserved
from policies.cache_state import PINNED, RESIDENT, SLOT
from policies.events import BYPASS, DROP, EVICT, HIT_PINNED, HIT_PREFETCHED, LOAD, PREFETCH, Events
from policies.registry import EVICTION, eviction_policy
from policies.switching import Domains, Kept
from tests.helpers.reference_cache import Event, ReferenceCache
from tests.helpers.scenarios import DOMAINS, Scenario, random_scenario, with_domains
from tracekit.errors import CapacityError, PolicyError

SEEDS = st.integers(0, 2**32 - 1)
UNFITTED = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]


def drawn(seed: int, eviction: str, prefetch: str, *, into_cache: bool, warm: bool) -> Scenario:
    """A scenario of several requests of several domains."""
    return with_domains(random_scenario(seed, eviction, prefetch, into_cache=into_cache), seed, warm=warm)


def found_events(scenario: Scenario, *, chunk: int = 1 << 20, compiled: bool = False) -> tuple[Events, dict[int, int]]:
    """All events, and how many of a switch are reported with each step."""
    changed: dict[int, int] = {}

    def on_switch(step: int, codes: np.ndarray, begins: bool) -> None:
        assert begins == (step not in changed) or len(codes)
        changed[step] = changed.get(step, 0) + len(codes)

    pieces = iter_decisions(scenario.trace, scenario.spec, chunk=chunk, compiled=compiled, on_switch=on_switch)
    return Events.join([events for _, events in pieces]), changed


def expected_switches(scenario: Scenario) -> dict[int, Kept]:
    """Requests follow one another: each one's first step switches to its label, where that is another."""
    labels, found, now = scenario.trace.manifest.domains, {}, ""
    for step, rows in enumerate(scenario.step_rows()):
        label = labels[int(scenario.trace.request[rows[0]])]
        if label != now:
            found[step] = scenario.spec.domains.kept[DOMAINS.index(label)]  # type: ignore[union-attr]
            now = label
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    eviction=st.sampled_from(["lru", "lfu", "fifo", "lfu-aging", "belady"]),
    prefetch=st.sampled_from(["none", "gate"]),
    into_cache=st.booleans(),
    chunk=st.integers(1, 200),
)
def test_switching_equals_the_reference(seed: int, eviction: str, prefetch: str, into_cache: bool, chunk: int) -> None:
    """The slow cache, told at each switch what another domain keeps; of what leaves by slot the order is not known."""
    warm = eviction_policy(eviction).reads != "next-use"
    scenario = drawn(seed, eviction, prefetch, into_cache=into_cache and warm, warm=warm)
    spec, references, hints = scenario.spec, scenario.references(), scenario.hints()
    cache = ReferenceCache(
        *(spec.layers, spec.experts, spec.capacity, spec.size.tolist(), eviction),
        staging=spec.staging,
        into_cache=spec.into_cache,
        distance=spec.distance,
        count=spec.count,
        future=[{layer * spec.experts + expert for expert in chosen} for layer, chosen in references],
        pinned=spec.pinned,
        reserved=reserved(spec).tolist(),
    )
    switches = expected_switches(scenario)
    events, changed = found_events(scenario, chunk=chunk)
    assert changed.keys() >= switches.keys()
    slots = {key: slot for slot, key in enumerate(spec.pinned)}
    cache.by_slot = slots.__getitem__
    pending: Kept | None = None
    by_switch = 0
    for visit, (layer, chosen) in enumerate(references):
        expected: list[Event] = cache.visit(layer, chosen, hints[visit])
        own = Events(*_of_visit(events, visit)).unpacked()
        slots |= {key: slot for _, key, slot in own[: len(expected)]}
        pending = switches.get(visit // spec.layers, pending) if layer == 0 else pending
        if pending is not None:
            demand = [layer * spec.experts + expert for expert in chosen]
            more, done = cache.switch(pending.pinned, pending.warm, demand)
            expected += more
            by_switch += len(more)
            pending = None if done else replace(pending, warm=())
        assert [(visit, kind, key) for kind, key, _ in own] == expected
        slots |= {key: slot for _, key, slot in own}
    assert by_switch == sum(changed.values())


def _of_visit(events: Events, visit: int) -> tuple[np.ndarray, np.ndarray]:
    first, last = events.start[visit], events.start[visit + 1]
    return events.code[first:last], np.array([0, last - first])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, eviction=st.sampled_from(UNFITTED), into_cache=st.booleans(), chunk=st.integers(1, 100))
def test_what_is_pinned_stays_while_its_domain_is_served(
    seed: int, eviction: str, into_cache: bool, chunk: int
) -> None:
    """Every policy: pinned experts hit, and leave at a switch alone; what is pinned is there."""
    moving = eviction_policy(eviction).reads != "next-use"
    scenario = drawn(seed, eviction, "gate", into_cache=into_cache and moving, warm=False)
    spec, (events, _) = scenario.spec, found_events(scenario, chunk=chunk)
    switches = expected_switches(scenario)
    pinned, coming, there = set(spec.pinned), set(spec.pinned), set(spec.pinned)
    for visit in range(len(events.start) - 1):
        own = Events(*_of_visit(events, visit)).unpacked()
        lookups = [(kind, key) for kind, key, _ in own if kind <= BYPASS]
        for kind, key in lookups:
            assert kind in (HIT_PINNED, HIT_PREFETCHED) if key in pinned else kind != HIT_PINNED
        switching = visit % spec.layers == 0 and visit // spec.layers in switches
        if switching:
            coming = set(switches[visit // spec.layers].pinned)
        left = [key for kind, key, _ in own if kind == EVICT and key in pinned]
        assert set(left) == (pinned - coming if switching else set())
        for kind, key, _ in own:
            there = there | {key} if kind in (LOAD, PREFETCH) else there - {key} if kind in (EVICT, DROP) else there
        used = {key for kind, key in lookups if key not in there}  # and could not be kept: loaded behind the next visit
        pinned = coming - used if switching else pinned | (coming - used)
        assert pinned <= there


@pytest.mark.parametrize("eviction", UNFITTED)
def test_state_and_slots_agree_at_the_end(eviction: str) -> None:
    """No slot is held twice or lost, and no group holds more than it may; restarts included."""
    warm = eviction_policy(eviction).reads != "next-use"
    for seed in range(12):
        scenario = drawn(seed, eviction, "gate", into_cache=False, warm=warm)
        spec = replace(scenario.spec, reset=seed % 3 == 0)
        ends: list[object] = []
        for _ in iter_decisions(scenario.trace, spec, compiled=False, on_end=ends.append):
            pass
        state = ends[0].state  # type: ignore[attr-defined]
        held = np.flatnonzero(state.place)
        slots = (state.place[held] >> SLOT).tolist()
        count = int(state.ring[1])
        free = [int(state.free[(int(state.ring[0]) + place) % len(state.free)]) for place in range(count)]
        assert sorted(slots + free) == list(range(len(state.free)))
        assert (state.used <= state.capacity).all()
        residents = np.flatnonzero(state.place & RESIDENT)
        assert len(residents) == int(state.resident_count.sum())
        assert not set(residents.tolist()) & set(np.flatnonzero(state.place & PINNED).tolist())
        # In which order they would go is asked of a copy.
        before = [array.copy() for array in state if isinstance(array, np.ndarray)]
        assert sorted(ends[0].order_of_leaving()) == residents.tolist()  # type: ignore[attr-defined]
        for one, other in zip(before, (array for array in state if isinstance(array, np.ndarray)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("eviction", ["lru", "random"])
def test_compiled_decisions_are_the_interpreted_ones(eviction: str) -> None:
    for seed in range(15):
        scenario = drawn(seed, eviction, "none", into_cache=False, warm=True)
        one, other = (found_events(scenario, compiled=compiled)[0].rows() for compiled in (True, False))
        assert one == other


def test_what_cannot_be() -> None:
    spec = CacheSpec(1, 4, (2,), np.ones(4, np.int64))
    too_many = Domains((Kept("a", (0, 1, 2)),), np.zeros((1, 4), np.int64))
    with pytest.raises(CapacityError, match="expert 2 of MoE layer 0"):
        reserved(replace(spec, domains=too_many))
    warm = Domains((Kept("a", (), (1,)),), np.zeros((1, 4), np.int64))
    scenario = random_scenario(1)
    with pytest.raises(PolicyError, match="warm no domain"):
        list(iter_decisions(scenario.trace, replace(spec, eviction="belady", domains=warm), compiled=False))
