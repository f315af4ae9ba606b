"""Curves of each layer against replay at every size, and the share of slots against trying every other."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.stacks.layer_curves import hull_gains, layer_curves, shared_out
from policies.cache_spec import CacheSpec
from policies.events import HIT
from tests.helpers.scenarios import Scenario, decisions, random_scenario, with_pinned


def hits_by_layer(scenario: Scenario, slots: int, pinned: tuple[int, ...]) -> list[int]:
    """Hits of an LRU cache with so many slots in each layer, beside what is pinned, by replay."""
    layers, experts = scenario.spec.layers, scenario.spec.experts
    kept = np.bincount(np.array(pinned, np.int64) // experts, minlength=layers)
    capacity = tuple((kept + slots).tolist())
    spec = CacheSpec(layers, experts, capacity, np.ones(layers * experts, np.int64), pinned=pinned)
    found = [0] * layers
    for _, kind, key, _ in decisions(scenario, spec, compiled=False):
        found[key // experts] += kind == HIT
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_curves_equal_replay_at_every_size_beside_what_is_pinned(seed: int) -> None:
    scenario = random_scenario(seed)
    ones = CacheSpec(scenario.spec.layers, scenario.spec.experts, (10**6,), np.ones_like(scenario.spec.size))
    pinned = with_pinned(Scenario(scenario.trace, ones), seed).spec.pinned
    found = layer_curves(scenario.trace, pinned)
    for slots in range(scenario.spec.experts + 1):
        assert found[:, slots].tolist() == hits_by_layer(scenario, slots, pinned)


def concave(values: list[int]) -> list[int]:
    """A curve that rises by these, the largest first."""
    return [0, *np.cumsum(sorted(values, reverse=True)).tolist()]


@settings(max_examples=200, deadline=None)
@given(
    curves=st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=1, max_size=3),
    total=st.integers(0, 12),
)
def test_of_concave_curves_no_other_share_hits_more(curves: list[list[int]], total: int) -> None:
    hits = np.array([concave(values) for values in curves])
    total = min(total, 4 * len(curves))
    found = shared_out(hits, total, [4] * len(curves))
    assert sum(found) == total
    others = [share for share in product(range(5), repeat=len(curves)) if sum(share) == total]
    gained = {share: sum(hits[layer, slots] for layer, slots in enumerate(share)) for share in others}
    assert gained[tuple(found)] == max(gained.values())
    # Of those alike the one whose first layers have most.
    assert tuple(found) == max(share for share in others if gained[share] == gained[tuple(found)])


def test_a_layer_whose_first_slots_hit_nothing_is_judged_by_what_more_gain() -> None:
    hits = np.array([[0, 0, 0, 9, 9], [0, 2, 3, 3, 3]])
    assert hull_gains(hits[0]).tolist() == [3.0, 3.0, 3.0, 0.0]
    assert shared_out(hits, 3, [4, 4]) == [3, 0]
    assert shared_out(hits, 4, [4, 4]) == [3, 1]
    assert shared_out(hits, 3, [2, 4]) == [2, 1]


@settings(max_examples=200, deadline=None)
@given(rises=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_hull_is_concave_nowhere_below_and_least(rises: list[int]) -> None:
    hits = np.cumsum([0, *rises])
    gains = hull_gains(hits)
    hull = np.concatenate([[0], np.cumsum(gains)])
    assert (np.diff(gains) <= 1e-9).all()
    assert (hull >= hits - 1e-9).all()
    # Least: each point is the highest chord over it.
    for at in range(len(hits)):
        chords = [
            hits[a] + (hits[b] - hits[a]) * (at - a) / (b - a) if b > a else hits[a]
            for a in range(at + 1)
            for b in range(at, len(hits))
        ]
        assert abs(hull[at] - max(chords)) < 1e-9
