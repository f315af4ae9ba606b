"""The figures of `tracekit info`, against counting by hand."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.traces import make_manifest, make_trace, random_experts
from tracekit import shards
from tracekit.importers import import_trace
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.stats import TraceStats, describe
from tracekit.trace import Trace
from tracekit.writer import TraceWriter


def test_a_trace_counted_by_hand(tmp_path: Path) -> None:
    """Two layers of four experts; a prompt of two tokens in one step, then three decode tokens."""
    trace = make_trace(
        tmp_path / "a.trace",
        [
            [[0, 1], [2, 3]],
            [[1, 2], [UNUSED, UNUSED]],
            [[0, 1], [0, 1]],
            [[1, 2], [0, 1]],
            [[3, 0], [2, UNUSED]],
        ],
        num_experts=4,
        step=[0, 0, 1, 2, 3],
        phase=[PREFILL, PREFILL, DECODE, DECODE, DECODE],
        expert_bytes=[10, 100],
    )
    stats = describe(trace)
    assert (stats.tokens, stats.prefill_tokens, stats.decode_tokens) == (5, 2, 3)
    assert (stats.requests, stats.steps, stats.decode_steps) == (1, 4, 3)
    assert stats.lookups == (3 + 2) + 4 + 4 + 3
    assert stats.distinct_per_prefill_visit == 5 / 2
    assert stats.distinct_per_decode_visit == pytest.approx((4 + 4 + 3) / 3 / 2)
    assert stats.token_cycle_experts == pytest.approx(2 + 5 / 3)
    assert stats.token_cycle_bytes == round(2 * 10 + 5 / 3 * 100)
    assert stats.model_expert_bytes == 4 * 110 and stats.expert_bytes == (10, 100)
    assert (stats.experts_used, stats.experts_total) == (8, 8)
    # Decode 1 -> 2 keeps {1} and {0, 1}; 2 -> 3 keeps nothing; seven slots of the later tokens are used.
    assert stats.overlap == pytest.approx(3 / 7)
    # Pairs of decode tokens, layer 0: {0,1}&{1,2}, {0,1}&{3,0} share 1; layer 1: {0,1}&{0,1} shares 2.
    # Each counts for both of its tokens, among two others, over eleven used slots.
    assert stats.overlap_chance == pytest.approx(2 * (1 + 1 + 2) / 2 / 11)


def slow_lookups(trace: Trace) -> int:
    return sum(
        len(set(trace.experts[trace.step == step, layer].ravel().tolist()) - {UNUSED})
        for step in np.unique(trace.step)
        for layer in range(trace.layers)
    )


def slow_told_apart(trace: Trace) -> bool:
    rows = zip(trace.step.tolist(), trace.request.tolist(), trace.phase.tolist(), strict=True)
    generated = [(step, request) for step, request, phase in rows if phase == DECODE]
    return len(set(generated)) == len(generated)


def slow_overlap(trace: Trace) -> float | None:
    kept = used = 0
    for request in np.unique(trace.request):
        rows = np.flatnonzero((trace.request == request) & (trace.phase == DECODE))
        for before, after in pairwise(rows):
            for layer in range(trace.layers):
                now = set(trace.experts[after, layer].tolist()) - {UNUSED}
                kept += len(now & set(trace.experts[before, layer].tolist()))
                used += len(now)
    return kept / used if used else None


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_counts_agree_with_slow_ones(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tokens: int, layers: int, top_k: int, chunk: int
) -> None:
    """In pieces of any size: what is looked at together must not show in the result."""
    rng = np.random.default_rng(seed)
    experts = random_experts(rng, tokens, layers, 5, top_k)
    experts[rng.random(experts.shape) < 0.2] = UNUSED
    trace = make_trace(
        tmp_path_factory.mktemp("stats") / "a.trace",
        experts,
        num_experts=5,
        step=np.sort(rng.integers(0, 6, tokens)),
        request=rng.integers(0, 3, tokens),
        phase=rng.integers(0, 2, tokens),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "block_rows", lambda manifest: chunk)
        stats = describe(trace)
    assert stats.lookups == slow_lookups(trace)
    assert stats.requests_told_apart == slow_told_apart(trace)
    expected = slow_overlap(trace) if stats.requests_told_apart else None
    assert stats.overlap == (pytest.approx(expected) if expected is not None else None)
    assert stats.experts_used == sum(len(np.unique(e[e != UNUSED])) for e in experts.swapaxes(0, 1))


def steady(tmp_path: Path, experts: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], name: str) -> TraceStats:
    return describe(make_trace(tmp_path / name, experts, num_experts=16, source="record"))


def independent(stats: TraceStats) -> bool:
    return any("independent from token to token" in warning for warning in stats.warnings)


def test_independent_routing_is_told_from_locality(tmp_path: Path) -> None:
    """Also when some experts are far more popular: popularity is no locality, and shows in both figures."""
    rng = np.random.default_rng(0)
    even = random_experts(rng, 400, 3, 16, 2)
    score = np.log(1 / np.arange(1, 17)) + rng.gumbel(size=(400, 3, 16))
    skewed = score.argsort(axis=2)[:, :, :-3:-1].astype(np.uint16)
    sticky = np.repeat(even[:200], 2, axis=0)

    assert independent(found := steady(tmp_path, even, "even"))
    assert found.load_entropy_mean is not None and found.load_entropy_mean > 0.98
    assert independent(found := steady(tmp_path, skewed, "skewed"))
    assert found.load_entropy_mean is not None and found.load_entropy_mean < 0.9
    assert not independent(found := steady(tmp_path, sticky, "sticky"))
    assert found.overlap is not None and found.overlap > 0.5


def test_entropy_ends(tmp_path: Path) -> None:
    """One expert: 0. All alike: 1. A layer with a single expert has no choice, and no entropy."""
    experts = np.stack([np.zeros(8), np.arange(8) % 4, np.zeros(8)], axis=1)[:, :, None]
    stats = describe(
        make_trace(tmp_path / "a.trace", experts, num_experts=[4, 4, 1], moe_layers=[3, 5, 6], model_layers=8)
    )
    assert stats.load_entropy_mean == pytest.approx(0.5)
    assert (stats.load_entropy_min, stats.load_entropy_min_layer) == (0.0, 3)


def test_warnings(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "empty.trace", make_manifest()):
        pass
    empty = describe(Trace.open(tmp_path / "empty.trace"))
    assert (empty.tokens, empty.lookups, empty.overlap, empty.load_entropy_mean) == (0, 0, None, None)
    text = " ".join(empty.warnings)
    for word in ("synthetic", "only 0 decode tokens", "no gate weights", "bytes per expert unknown"):
        assert word in text
    assert "incomplete" not in text
    TraceWriter(tmp_path / "open.trace", make_manifest()).close()
    assert "incomplete" in describe(Trace.open(tmp_path / "open.trace")).warnings[0]


def test_the_published_trace(shared_data: Path, tmp_path: Path) -> None:
    """39,526 lookups, as its README counts them."""
    source = shared_data / "qwen3-30b-a3b-phone" / "route.csv"
    stats = describe(import_trace("bigmoe-csv", source, tmp_path / "a.trace"))
    assert stats.lookups == 39_526
    assert stats.token_cycle_experts == 48 * 6
    assert stats.overlap is not None and stats.overlap_chance is not None
    assert stats.overlap > 1.3 * stats.overlap_chance
    assert stats.warnings == []
