"""Policies that keep their residents in a heap against the same policies asking every resident, in large groups."""

import numpy as np
import pytest

from policies.cache_spec import CacheSpec
from policies.eviction.base import EvictionPolicy
from policies.eviction.ordered import Ordered
from policies.registry import EVICTION, eviction_policy
from tests.helpers.scenarios import Scenario, decisions, memory_trace

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 64, 6, 300
ORDERED = [name for name in sorted(EVICTION) if issubclass(eviction_policy(name), Ordered)]


def scenario(policy: str, capacity: tuple[int, ...], sizes: np.ndarray | None = None) -> Scenario:
    """Skewed routing in batches, so that a visit demands up to half of what a group holds."""
    rng = np.random.default_rng(sum(capacity))
    scores = rng.gumbel(size=(TOKENS, LAYERS, EXPERTS)) - 0.8 * np.log(np.arange(1, EXPERTS + 1))
    chosen = np.argsort(-scores, axis=2)[:, :, :TOP_K].astype(np.uint16)
    steps = np.cumsum(rng.random(TOKENS) < 0.5).astype(np.int32)
    size = np.ones(LAYERS * EXPERTS, np.int64) if sizes is None else sizes
    return Scenario(memory_trace(chosen, [EXPERTS] * LAYERS, steps), CacheSpec(LAYERS, EXPERTS, capacity, size, policy))


def test_these_are_ordered() -> None:
    assert ORDERED == ["belady", "belady-bypass", "lfu", "lfu-aging", "lfu-perfect", "lru-k"]


@pytest.mark.parametrize("capacity", [(150,), (40, 40, 40, 40), (12, 30, 5, 64)], ids=["global", "layer", "uneven"])
@pytest.mark.parametrize("policy", [name for name in ORDERED if name != "belady-bypass"])
def test_the_heap_finds_whom_asking_all_finds(
    policy: str, capacity: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = decisions(scenario(policy, capacity))
    monkeypatch.setattr(eviction_policy(policy), "victim", EvictionPolicy.victim)
    assert found == decisions(scenario(policy, capacity), compiled=False)
    assert len(found) > TOKENS * LAYERS * TOP_K / 2


@pytest.mark.parametrize("policy", [name for name in ORDERED if name != "belady-bypass"])
def test_of_unequal_sizes_too(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One load may take several victims, and room that was not found leaves everybody where they are."""
    sizes = np.random.default_rng(1).integers(1, 5, LAYERS * EXPERTS)
    found = decisions(scenario(policy, (300,), sizes))
    monkeypatch.setattr(eviction_policy(policy), "victim", EvictionPolicy.victim)
    assert found == decisions(scenario(policy, (300,), sizes), compiled=False)
