"""Reuse distances, working sets, prediction across layers, recall and shifts, against counting by hand."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.traces import make_trace, random_experts
from tracekit import shards
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.stats import describe
from tracekit.stats.drift import divergence
from tracekit.stats.locality import WINDOWS
from tracekit.stats.order import order_of
from tracekit.trace import Trace


def chosen(trace: Trace, row: int, layer: int) -> list[int]:
    return [expert for expert in trace.experts[row, layer].tolist() if expert != UNUSED]


def slow_reuse(trace: Trace, rows: list[int]) -> tuple[Counter[int], int]:
    """Distances by listing the experts of the tokens in between."""
    distances: Counter[int] = Counter()
    first_uses = 0
    for layer in range(trace.layers):
        last: dict[int, int] = {}
        for token, row in enumerate(rows):
            for expert in chosen(trace, row, layer):
                if expert in last:
                    between = [chosen(trace, rows[other], layer) for other in range(last[expert] + 1, token)]
                    distances[len({other for experts in between for other in experts})] += 1
                else:
                    first_uses += 1
            last |= dict.fromkeys(chosen(trace, row, layer), token)
    return distances, first_uses


def slow_working_set(trace: Trace, rows: list[int], window: int) -> float | None:
    counts = [
        len({expert for row in rows[first : first + window] for expert in chosen(trace, row, layer)})
        for first in range(0, len(rows) - window + 1, window)
        for layer in range(trace.layers)
    ]
    return sum(counts) / len(counts) if counts else None


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_reuse_and_working_sets(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tokens: int, layers: int, top_k: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    experts = random_experts(rng, tokens, layers, 6, top_k)
    experts[rng.random(experts.shape) < 0.2] = UNUSED
    phase = rng.integers(0, 2, tokens)
    trace = make_trace(tmp_path_factory.mktemp("stats") / "a.trace", experts, num_experts=6, phase=phase)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "block_rows", lambda manifest: block)
        stats = describe(trace)
    rows = [row for row in range(tokens) if phase[row] == DECODE] or list(range(tokens))
    distances, first_uses = slow_reuse(trace, rows)
    assert sum(layer.first_uses for layer in stats.by_layer) == first_uses
    ordered = sorted(distances.elements())
    for name, share in (("p50", 0.5), ("p90", 0.9)):
        expected = ordered[max(0, int(np.ceil(share * len(ordered))) - 1)] if ordered else None
        assert stats.reuse_distance[name] == expected
    assert stats.working_set == {
        window: pytest.approx(mean) for window in WINDOWS if (mean := slow_working_set(trace, rows, window)) is not None
    }


def test_a_cycle_has_one_distance(tmp_path: Path) -> None:
    """Five experts in turn: four others between two uses, five in any window of five or more."""
    trace = make_trace(tmp_path / "a.trace", (np.arange(200) % 5)[:, None, None])
    stats = describe(trace)
    assert stats.reuse_distance == {"p10": 4, "p50": 4, "p90": 4, "p99": 4}
    assert stats.first_use_share == 5 / 200
    assert stats.working_set == {1: 1, 4: 4, 16: 5, 64: 5}


def test_a_layer_that_follows_from_the_one_before(tmp_path: Path) -> None:
    """Layer 1 is a permutation of layer 0, layer 2 independent: predictable, and no better than popularity."""
    rng = np.random.default_rng(0)
    first = random_experts(rng, 2000, 1, 16, 2)
    follows = rng.permutation(16).astype(np.uint16)[first]
    trace = make_trace(
        tmp_path / "a.trace", np.concatenate([first, follows, random_experts(rng, 2000, 1, 16, 2)], axis=1)
    )
    found = describe(trace).cross_layer
    assert found is not None and found.tested_tokens == 1000
    assert found.hit_ratio_by_layer[0] == 1.0
    assert found.hit_ratio_by_layer[1] == pytest.approx(2 / 16, abs=0.03)
    assert found.popularity == pytest.approx(2 / 16, abs=0.03)


def test_prediction_is_tested_on_what_it_was_not_counted_on(tmp_path: Path) -> None:
    """The second half follows another permutation: what the first half taught misleads."""
    rng = np.random.default_rng(0)
    first = random_experts(rng, 1000, 1, 16, 1)
    follows = np.concatenate([first[:500], (first[500:] + 1) % 16])
    found = describe(make_trace(tmp_path / "a.trace", np.concatenate([first, follows], axis=1))).cross_layer
    assert found is not None and found.hit_ratio == 0.0


def test_prediction_by_counting(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    experts = random_experts(rng, 60, 2, 5, 2)
    found = describe(make_trace(tmp_path / "a.trace", experts, num_experts=5)).cross_layer
    together: defaultdict[tuple[int, int], int] = defaultdict(int)
    load, popular = Counter[int](), Counter[int]()
    for here, there in experts[:30].tolist():
        load.update(here)
        popular.update(there)
        for one in here:
            for other in there:
                together[one, other] += 1
    hits = 0
    for here, there in experts[30:].tolist():
        score = {
            e: sum(together[one, e] / max(1, load[one]) for one in here) + 1e-6 * popular[e] / 60 for e in range(5)
        }
        hits += len(set(sorted(range(5), key=lambda e: (-score[e], e))[:2]) & set(there))
    assert found is not None and found.hit_ratio == pytest.approx(hits / 60, abs=0.02)


def test_lookahead_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of layer l at distance 1 are about layer l + 1; best first, ties by number."""
    rng = np.random.default_rng(0)
    experts = random_experts(rng, 50, 3, 8, 2)
    lookahead = rng.normal(size=(50, 2, 8)).astype(np.float16)
    lookahead[0] = 0
    trace = make_trace(tmp_path / "a.trace", experts, num_experts=8, lookahead={1: lookahead, 2: lookahead[:, :1]})
    found = {recall.distance: recall for recall in describe(trace).lookahead_recall}
    assert sorted(found) == [1, 2]
    for distance, recall in found.items():
        order = np.argsort(-lookahead.astype(float), axis=2, kind="stable")
        for count, share in recall.recall.items():
            hits = sum(
                expert in order[row, layer, :count]
                for row in range(50)
                for layer in range(3 - distance)
                for expert in experts[row, layer + distance]
            )
            assert share == pytest.approx(hits / (50 * (3 - distance) * 2))
        assert recall.recall[8] == 1.0


def test_shifts_between_requests(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low, high = random_experts(rng, 400, 2, 8, 2), random_experts(rng, 400, 2, 8, 2) + 8
    apart = describe(
        make_trace(tmp_path / "a.trace", np.concatenate([low, high]), num_experts=16, request=np.arange(800) // 40)
    )
    mixed = describe(
        make_trace(tmp_path / "b.trace", np.stack([low, high], axis=1).reshape(800, 2, 2), request=np.arange(800) // 40)
    )
    assert apart.domain_shift is not None and mixed.domain_shift is not None
    assert apart.domain_shift.halves == pytest.approx(1.0) and apart.domain_shift.parts_are == "requests"
    assert apart.domain_shift.shuffles_as_far < 0.02 and any("second half" in warning for warning in apart.warnings)
    assert mixed.domain_shift.halves < 0.01 and not any("second half" in warning for warning in mixed.warnings)


def test_divergence_by_hand() -> None:
    assert divergence(np.array([[1, 1]]), np.array([[5, 5]])) == 0
    assert divergence(np.array([[3, 0]]), np.array([[0, 9]])) == 1
    # (1, 0) against (1/2, 1/2): H(3/4, 1/4) - 1/2.
    assert divergence(np.array([[2, 0]]), np.array([[1, 1]])) == pytest.approx(0.811278 - 0.5, abs=1e-6)
    assert divergence(np.array([[2, 0], [0, 0]]), np.array([[1, 1], [4, 4]])) == pytest.approx(0.311278, abs=1e-6)


def test_interleaved_requests_share_few_slots(tmp_path: Path) -> None:
    """Requests come and go; the table of their last choices is as large as most of them at once."""
    request = np.concatenate([[0, 1] * 5, [2, 3] * 5, [4] * 3])
    trace = make_trace(tmp_path / "a.trace", np.zeros((23, 1, 1)), request=request, phase=[PREFILL] + [DECODE] * 22)
    order = order_of(trace)
    assert (order.requests, order.slots) == (5, 2)
    assert order.slot[0] == -1 and order.slot.max() == 1


def test_few_rows_of_many_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = np.array([[[60000], [1]], [[2], [50000]]])
    stats = describe(make_trace(tmp_path / "a.trace", experts))
    assert stats.cross_layer is None and any("not compared" in note for note in stats.notes)
