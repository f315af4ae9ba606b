"""One-pass curves: at every size, in both phases and scopes, the hits of replay, to the last one."""

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.curves import stack_curve
from engine.curves.stack_curve import STACK_CURVES, Scope, Sharing, StackCurve, belady_curve, lru_curve
from engine.decisions.run import iter_decisions
from engine.plan.plan import plan_from_dict
from engine.replay.passes import run
from engine.replay.replay import replay
from engine.stacks import belady, lru
from policies.cache_spec import CacheSpec
from policies.events import BYPASS, HIT_PREFETCHED, LOAD
from tests.helpers.scenarios import memory_trace
from tracekit.demand import iter_demand, step_starts
from tracekit.importers import import_trace
from tracekit.trace import Trace

ABSENT = 65535
SEEDS = st.integers(0, 2**32 - 1)
SCOPES: tuple[Scope, ...] = ("layer", "global")
# The policies, each in the two ways it is found: for groups of few experts, and for groups of many.
WAYS = ("lru", "lru, many", "belady", "belady, many")


def find(way: str, trace: Trace, scope: Scope) -> StackCurve:
    """A curve found as for groups of few experts, or as for groups of many."""
    policy, _, many = way.partition(", ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lru, "MOST", 0 if many else 10**6)
        patch.setattr(belady, "DEEP", 0 if many else 10**6)
        return STACK_CURVES[policy](trace, scope)


def random_trace(seed: int) -> Trace:
    """Layers of unequal width, steps of one or many tokens, holes, and prefill and decode in any order."""
    rng = np.random.default_rng(seed)
    per_layer = [int(n) for n in rng.integers(1, 14, rng.integers(1, 4))]
    top_k = int(rng.integers(1, max(per_layer) + 1)) if rng.random() < 0.5 else int(rng.integers(1, 4))
    tokens = int(rng.integers(1, 80))
    step = np.cumsum(rng.random(tokens) < rng.choice([0.2, 0.6, 0.9, 1.0])).astype(np.int32)
    chosen = np.full((tokens, len(per_layer), top_k), ABSENT, np.uint16)
    for layer, number in enumerate(per_layer):
        bias = rng.gumbel(size=number) * rng.choice([0.0, 1.0, 2.0])
        for token in range(tokens):
            picked = np.argsort(-(bias + rng.gumbel(size=number)))[:top_k]
            chosen[token, layer, : len(picked)] = picked
    chosen[rng.random(chosen.shape) < rng.choice([0.0, 0.2, 0.7])] = ABSENT
    phase = (rng.random(step[-1] + 1) < 0.5).astype(np.uint8)[step]
    return memory_trace(chosen, per_layer, step, phase=phase)


def most_slots(trace: Trace, scope: Scope) -> int:
    per_layer = trace.manifest.experts_per_layer
    return max(per_layer) if scope == "layer" else sum(per_layer)


def replayed(trace: Trace, way: str, scope: Scope, slots: int) -> tuple[list[int], list[int]]:
    """Lookups and hits of each phase, decided visit by visit at one size."""
    keys = trace.layers * trace.num_experts
    groups = trace.layers if scope == "layer" else 1
    spec = CacheSpec(trace.layers, trace.num_experts, (slots,) * groups, np.ones(keys, np.int64), way.split(",")[0])
    lookups, hits = [0, 0], [0, 0]
    for demand, events in iter_decisions(trace, spec):
        phase = demand.phase[events.visit // demand.layers - demand.first_step]
        for p in (0, 1):
            lookups[p] += int((events.kind[phase == p] <= BYPASS).sum())
            hits[p] += int((events.kind[phase == p] < LOAD).sum())
    return lookups, hits


def assert_as_replayed(trace: Trace, way: str, scope: Scope) -> None:
    curve = find(way, trace, scope)
    assert curve.hits.shape == (2, most_slots(trace, scope) + 1)
    assert curve.hits[:, 0].tolist() == [0, 0]
    for slots in range(1, most_slots(trace, scope) + 1):
        assert (curve.lookups.tolist(), curve.hits[:, slots].tolist()) == replayed(trace, way, scope, slots), slots


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
@example(seed=0)
def test_every_size_hits_as_replay_does(way: str, scope: Scope, seed: int) -> None:
    """Also below the largest demand of a visit, where the rest bypasses."""
    trace = random_trace(seed)
    assert_as_replayed(trace, way, scope)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", WAYS)
def test_a_prefill_of_every_expert_is_remembered_as_replay_remembers_it(way: str, scope: Scope) -> None:
    """After it, small caches hold the experts referenced first in it, not the most recent ones."""
    rng = np.random.default_rng(5)
    prefills = np.stack([np.tile(rng.permutation(24), 2) for _ in range(3)])
    decodes = np.full((60, 48), ABSENT)
    decodes[:, :3] = rng.random((60, 24)).argsort(axis=1)[:, :3]
    rows = np.concatenate([prefills[:1], decodes[:20], prefills[1:2], decodes[20:35], prefills[2:], decodes[35:]])
    trace = memory_trace(rows.astype(np.uint16)[:, None, :], [24])
    assert_as_replayed(trace, way, scope)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", WAYS)
def test_long_traces_close_the_gaps_of_the_timeline(way: str, scope: Scope) -> None:
    """Enough references to fill a group's timeline many times, and experts enough for a deep stack_curve."""
    rng = np.random.default_rng(6)
    chosen = np.minimum(rng.geometric(0.01, (900, 3, 8)) - 1, 249).astype(np.uint16)
    trace = memory_trace(chosen, [250] * 3)
    curve = find(way, trace, scope)
    for slots in (1, 7, 8, 30, 200, 250, *((400, 749, 750) if scope == "global" else ())):
        assert curve.hits[:, slots].tolist() == replayed(trace, way, scope, slots)[1], slots


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_pieces_of_any_size_count_as_the_whole(way: str, seed: int) -> None:
    trace = random_trace(seed)
    whole = find(way, trace, "global")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_curve, "iter_demand", partial(iter_demand, chunk=7))
        pieces = find(way, trace, "global")
    assert pieces.lookups.tolist() == whole.lookups.tolist()
    assert pieces.hits.tolist() == whole.hits.tolist()


@pytest.mark.parametrize("scope", SCOPES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_more_slots_hit_no_less(scope: Scope, seed: int) -> None:
    trace = random_trace(seed)
    for way in WAYS:
        curve = find(way, trace, scope)
        assert (np.diff(curve.hits, axis=1) >= 0).all()
        # With room for everything, each expert misses once.
        keys = np.unique([key for rows in distinct(trace) for key in rows])
        assert int(curve.lookups.sum() - curve.hits[:, -1].sum()) == len(keys)


def distinct(trace: Trace) -> list[NDArray[np.int64]]:
    """The keys of each layer that are ever demanded."""
    of_layer = [trace.experts[:, layer] for layer in range(trace.layers)]
    return [layer * trace.num_experts + np.unique(e[e != ABSENT]).astype(np.int64) for layer, e in enumerate(of_layer)]


def test_positions_by_hand() -> None:
    """One expert a visit, one layer: a b c a, then b. LRU finds a and b behind two others."""
    trace = memory_trace(np.array([0, 1, 2, 0, 1], np.uint16).reshape(5, 1, 1), [3])
    assert lru_curve(trace, "layer").hits.sum(axis=0).tolist() == [0, 0, 0, 2]
    # Clairvoyant: two slots keep a beside b and then c; b is gone. Three slots keep all.
    assert belady_curve(trace, "layer").hits.sum(axis=0).tolist() == [0, 0, 1, 2]


@pytest.fixture(scope="module")
def qwen(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    source = shared_data / "qwen3-30b-a3b-phone" / "route.csv"
    return import_trace("bigmoe-csv", source, tmp_path_factory.mktemp("qwen") / "qwen.trace")


@pytest.mark.parametrize(("scope", "sizes"), [("layer", (1, 6, 20, 64, 100, 128)), ("global", (40, 700, 3000))])
@pytest.mark.parametrize("policy", STACK_CURVES)
def test_a_real_trace_hits_as_replay_does(policy: str, scope: str, sizes: tuple[int, ...], qwen: Trace) -> None:
    """Its prefill of 28 tokens demands most of a layer's experts at once."""
    curve = STACK_CURVES[policy](qwen, cast(Scope, scope))
    assert int(curve.lookups.sum()) == 39_526
    for slots in sizes:
        capacity = f"{slots}/layer" if scope == "layer" else str(slots)
        plan = plan_from_dict({"cache": {"capacity": capacity}, "eviction": {"policy": policy}})
        result = replay(qwen, plan, bounds=False)
        assert curve.hits[:, slots].tolist() == [result.phases.prefill.hits, result.phases.decode.hits], slots


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_requests_share_the_hits_of_their_steps(way: str, scope: Scope, seed: int) -> None:
    """Against replaying at each size and sharing each step's counts in plain loops; the curve itself stays as it is."""
    trace = random_trace(seed)
    policy, _, many = way.partition(", ")
    starts = step_starts(trace.step)
    whose = np.random.default_rng(seed).integers(0, 4, trace.tokens)
    step = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    kept = np.random.default_rng(seed + 1).random(trace.tokens) < 0.8
    sharing = Sharing(step[kept], whose[kept], 1 / np.diff(starts), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lru, "MOST", 0 if many else 10**6)
        patch.setattr(belady, "DEEP", 0 if many else 10**6)
        patch.setattr(stack_curve, "iter_demand", partial(iter_demand, chunk=29))
        shared = STACK_CURVES[policy](trace, scope, sharing)
    plain = find(way, trace, scope)
    assert shared.hits.tolist() == plain.hits.tolist() and shared.lookups.tolist() == plain.lookups.tolist()
    assert shared.by_request is not None and plain.by_request is None
    for slots in {0, 1, most_slots(trace, scope) // 2, most_slots(trace, scope)}:
        groups, keys = (trace.layers if scope == "layer" else 1), trace.layers * trace.num_experts
        spec = CacheSpec(trace.layers, trace.num_experts, (slots,) * groups, np.ones(keys, np.int64), policy)
        (done,) = run(trace, spec)
        hits, lookups = np.zeros(4), np.zeros(4)
        for token in np.flatnonzero(kept):
            counted = done.step_kinds[step[token]] / (starts[step[token] + 1] - starts[step[token]])
            hits[whose[token]] += counted[: HIT_PREFETCHED + 1].sum()
            lookups[whose[token]] += counted[: BYPASS + 1].sum()
        assert shared.by_request.hits[:, slots].tolist() == pytest.approx(hits.tolist())
        assert shared.by_request.lookups.tolist() == pytest.approx(lookups.tolist())
