"""Switching between domains: by the rules alone, and for every policy."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decisions.run import iter_decisions
from policies.cache import CacheSpec, reserved
from policies.cache_state import PINNED, RESIDENT, SLOT
from policies.events import BYPASS, DROP, EVICT, HIT_PINNED, HIT_PREFETCHED, LOAD, PREFETCH, Events
from policies.registry import EVICTION, eviction_policy
from policies.switching import Domains, Kept
from tests.helpers.reference_cache import Event, ReferenceCache
from tests.helpers.scenarios import Scenario, random_scenario, with_requests
from tracekit.errors import CapacityError, PolicyError

SEEDS = st.integers(0, 2**32 - 1)
UNFITTED = [name for name in sorted(EVICTION) if eviction_policy(name).reads != "predicted-use"]
NAMES = ("code", "prose", "tables")


def drawn(seed: int, eviction: str, prefetch: str, *, into_cache: bool, warm: bool) -> Scenario:
    """A scenario of several requests with labels, and what is pinned and warm for each: any experts that fit."""
    scenario, _ = with_requests(random_scenario(seed, eviction, prefetch, into_cache=into_cache), seed)
    spec, rng = scenario.spec, np.random.default_rng(seed)

    def fitting() -> tuple[int, ...]:
        left, found = list(spec.capacity), []
        most = int(rng.integers(0, spec.layers * spec.experts))
        for key in rng.permutation(spec.layers * spec.experts)[:most].tolist():
            group = key // spec.experts if len(left) > 1 else 0
            if spec.size[key] <= left[group]:
                left[group] -= int(spec.size[key])
                found.append(key)
        return tuple(sorted(found))

    def any_keys() -> tuple[int, ...]:
        return tuple(rng.permutation(spec.layers * spec.experts)[: int(rng.integers(0, 6))].tolist()) if warm else ()

    kept = tuple(Kept(name, fitting(), any_keys()) for name in NAMES)
    domains = Domains(kept, np.zeros((len(NAMES), spec.layers * spec.experts), np.int64))
    labels = [NAMES[place] for place in rng.integers(0, len(NAMES), int(scenario.trace.request[-1]) + 1)]
    trace = scenario.trace.with_manifest(msgspec.structs.replace(scenario.trace.manifest, domains=labels))
    return replace(scenario, trace=trace, spec=replace(spec, pinned=fitting(), domains=domains))


def found_events(
    scenario: Scenario, *, chunk: int = 1 << 20, compiled: bool = False
) -> tuple[Events, dict[int, Events]]:
    """All events, and those of each switch by step."""
    changed: dict[int, Events] = {}

    def on_switch(step: int, codes: np.ndarray) -> None:
        changed[step] = Events(codes, np.array([0, len(codes)]))

    pieces = iter_decisions(scenario.trace, scenario.spec, chunk=chunk, compiled=compiled, on_switch=on_switch)
    return Events.join([events for _, events in pieces]), changed


def expected_switches(scenario: Scenario) -> dict[int, Kept]:
    """Requests follow one another: each one's first step switches to its label, where that is another."""
    labels, found, now = scenario.trace.manifest.domains, {}, ""
    for step, rows in enumerate(scenario.step_rows()):
        label = labels[int(scenario.trace.request[rows[0]])]
        if label != now:
            found[step] = scenario.spec.domains.kept[NAMES.index(label)]  # type: ignore[union-attr]
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
    assert changed.keys() == switches.keys()
    for visit, (layer, chosen) in enumerate(references):
        expected: list[Event] = cache.visit(layer, chosen, hints[visit])
        found = [row[:3] for row in Events(*_of_visit(events, visit)).rows()]
        found = [(visit, *row[1:]) for row in found]
        assert found[: len(expected)] == expected
        if layer == 0 and (kept := switches.get(visit // spec.layers)) is not None:
            demand = [layer * spec.experts + expert for expert in chosen]
            more = cache.switch(kept.pinned, kept.warm, demand)
            gone = sum(kind == EVICT for _, kind, _ in more[: len(changed[visit // spec.layers])])
            own = found[len(expected) :]
            assert (sorted(own[:gone]) == sorted(more[:gone]) and own[gone:] == more[gone:]) or sorted(own) == sorted(
                more
            )
        else:
            assert len(found) == len(expected)


def _of_visit(events: Events, visit: int) -> tuple[np.ndarray, np.ndarray]:
    first, last = events.start[visit], events.start[visit + 1]
    return events.code[first:last], np.array([0, last - first])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, eviction=st.sampled_from(UNFITTED), into_cache=st.booleans(), chunk=st.integers(1, 100))
def test_what_is_pinned_stays_while_its_domain_is_served(
    seed: int, eviction: str, into_cache: bool, chunk: int
) -> None:
    """Every policy: pinned experts never miss, never leave and keep their slots but at a switch; copies are those of what
    was nowhere; what the cache holds fits; and nobody is asked about what is pinned."""
    warm = eviction_policy(eviction).reads != "next-use"
    scenario = drawn(seed, eviction, "gate", into_cache=into_cache and warm, warm=warm)
    spec, (events, changed) = scenario.spec, found_events(scenario, chunk=chunk)
    switches = expected_switches(scenario)
    most = (np.array(spec.capacity) - reserved(spec)).tolist()
    pinned, held, fresh = set(spec.pinned), {key: slot for slot, key in enumerate(spec.pinned)}, set[int]()
    resident: set[int] = set()
    for visit in range(len(events.start) - 1):
        step, own = visit // spec.layers, Events(*_of_visit(events, visit)).unpacked()
        kept = switches.get(step) if visit % spec.layers == 0 else None
        behind = len(changed[step]) if kept is not None else 0
        for kind, key, slot in own[: len(own) - behind]:
            assert kind in (HIT_PINNED, HIT_PREFETCHED) if key in pinned else kind != HIT_PINNED
            if key in pinned:
                assert held[key] == slot
                assert (kind == HIT_PREFETCHED) == (key in fresh)
                fresh.discard(key)
            elif kind == LOAD:
                resident.add(key)
            elif kind in (EVICT, DROP):
                resident.discard(key)
        if kept is None:
            continue
        left = {key for kind, key, _ in own[len(own) - behind :] if kind == EVICT and key in pinned}
        came = [(key, slot) for kind, key, slot in own[len(own) - behind :] if kind == PREFETCH]
        assert left == pinned - set(kept.pinned)
        copied = {key for key, _ in came if key in kept.pinned}
        assert copied <= set(kept.pinned) - pinned
        assert not copied & resident  # what is there costs nothing
        pinned, resident = set(kept.pinned), resident - set(kept.pinned)
        held = {key: slot for key, slot in held.items() if key in pinned} | {k: s for k, s in came if k in pinned}
        # What was resident or staged is pinned where it was: its slot shows at its next hit.
        for key in pinned - held.keys():
            held[key] = next((s for n, k, s in _later(events, visit) if k == key and n == HIT_PINNED), -1)
        fresh = (
            (fresh & pinned) | copied | {k for k in pinned - copied if _first_kind(events, visit, k) == HIT_PREFETCHED}
        )
    assert all(size >= 0 for size in most)


def _later(events: Events, visit: int) -> list[tuple[int, int, int]]:
    return Events(events.code[events.start[visit + 1] :], np.zeros(1, np.int64)).unpacked()


def _first_kind(events: Events, visit: int, key: int) -> int:
    return next((kind for kind, k, _ in _later(events, visit) if k == key and kind <= BYPASS), -1)


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


@pytest.mark.parametrize("eviction", ["lru", "lfu", "arc", "random"])
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
