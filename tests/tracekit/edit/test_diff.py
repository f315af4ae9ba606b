"""Routing drift, against comparing sets one by one."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.traces import make_trace, random_experts
from tracekit.edit import diff
from tracekit.edit.diff import Diff
from tracekit.errors import TraceError
from tracekit.rows import UNUSED
from tracekit.trace import Trace

EXPERTS = random_experts(np.random.default_rng(0), 24, 3, 8, 2)
REQUEST = np.arange(24) // 8
POSITION = np.arange(24) % 8


def make(path: Path, experts: np.ndarray = EXPERTS, **fields: Any) -> Trace:
    return make_trace(
        path,
        experts,
        **{"num_experts": 8, "request": REQUEST, "position": POSITION, "moe_layers": [1, 3, 4]} | fields,
        model_layers=5,
    )


def test_a_recording_and_itself(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random(EXPERTS.shape)
    one = make(tmp_path / "a.trace", weights=weights)
    other = make(tmp_path / "b.trace", EXPERTS[:, :, ::-1], weights=weights[:, :, ::-1])
    found = diff(one, other)
    assert (found.compared, found.equal, found.jaccard, found.requests_that_differ) == (24, 1.0, 1.0, 0)
    assert (found.weight_difference, found.largest_weight_difference) == (0.0, 0.0)
    assert all(part.first_routing_difference is None for part in found.by_request)


def test_one_difference_is_found(tmp_path: Path) -> None:
    """Request 1, position 3, the layer that the model numbers 4: one of two experts is another."""
    changed, weights = EXPERTS.copy(), np.full(EXPERTS.shape, 0.5)
    old = changed[11, 2].tolist()
    changed[11, 2, 0] = next(expert for expert in range(8) if expert not in old)
    more = weights.copy()
    more[11, 2, 1] = 0.75
    found = diff(make(tmp_path / "a.trace", weights=weights), make(tmp_path / "b.trace", changed, weights=more))
    assert found.equal == pytest.approx(71 / 72) and found.jaccard == pytest.approx((71 + 1 / 3) / 72)
    assert [(part.layer, part.equal) for part in found.by_layer] == [(1, 1.0), (3, 1.0), (4, pytest.approx(23 / 24))]
    first, second, third = found.by_request
    assert (second.first_routing_difference, second.first_layer, second.first_token_difference) == (3, 4, None)
    assert first.first_routing_difference is third.first_routing_difference is None
    assert found.requests_that_differ == 1
    assert [(part.first, part.last, part.tokens) for part in found.by_position] == [(0, 0, 3), (1, 3, 9), (4, 15, 12)]
    assert found.by_position[1].equal == pytest.approx(26 / 27) and found.by_position[2].equal == 1.0
    assert found.weight_difference == pytest.approx(0.25 / 143) and found.largest_weight_difference == 0.25


def slow(one: Trace, other: Trace) -> tuple[int, float, float]:
    rows = {(r, p): i for i, (r, p) in enumerate(zip(other.request.tolist(), other.position.tolist(), strict=True))}
    equal, jaccard, compared = 0, 0.0, 0
    for row, key in enumerate(zip(one.request.tolist(), one.position.tolist(), strict=True)):
        if key not in rows:
            continue
        compared += 1
        for layer in range(one.layers):
            mine = set(one.experts[row, layer].tolist()) - {UNUSED}
            its = set(other.experts[rows[key], layer].tolist()) - {UNUSED}
            equal += mine == its
            jaccard += len(mine & its) / len(mine | its) if mine | its else 1.0
    return compared, equal / compared / one.layers, jaccard / compared / one.layers


@given(st.integers(0, 2**32), st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_any_order_and_any_blocks(tmp_path_factory: pytest.TempPathFactory, seed: int, block: int) -> None:
    """The second recording ran the same requests batched: other rows, other steps; some tokens are missing."""
    folder, rng = tmp_path_factory.mktemp("diff"), np.random.default_rng(seed)
    drifted = np.where(rng.random((24, 3, 1)) < 0.3, random_experts(rng, 24, 3, 8, 2), EXPERTS)
    drifted[rng.random(drifted.shape) < 0.1] = UNUSED
    batched = np.argsort(POSITION * 3 + REQUEST)
    batched = batched[~((REQUEST[batched] == 2) & (POSITION[batched] > 5))]
    one = make(folder / "a.trace")
    other = make(folder / "b.trace", drifted[batched], request=REQUEST[batched], position=POSITION[batched])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[diff.__module__], "_BLOCK_LOOKUPS", block)
        found = diff(one, other)
    assert (found.compared, found.equal, found.jaccard) == pytest.approx(slow(one, other))
    assert (found.only_in_first, found.only_in_second) == (2, 0)
    assert sum(part.compared for part in found.by_request) == found.compared
    assert sum(part.tokens for part in found.by_position) == found.compared


def test_what_follows_another_token_is_left_out(tmp_path: Path) -> None:
    tokens, others = np.arange(24), np.arange(24)
    others[12:16] += 100  # request 1 from position 4 on
    changed = EXPERTS.copy()
    changed[13:16] = random_experts(np.random.default_rng(9), 3, 3, 8, 2)
    found = diff(make(tmp_path / "a.trace", token_id=tokens), make(tmp_path / "b.trace", changed, token_id=others))
    assert (found.compared, found.after_token_difference, found.equal) == (20, 4, 1.0)
    assert [part.first_token_difference for part in found.by_request] == [None, 4, None]
    unknown = diff(make(tmp_path / "c.trace"), make(tmp_path / "d.trace", changed, token_id=others))
    assert unknown.compared == 24 and unknown.equal is not None and unknown.equal < 1


def test_nothing_in_common(tmp_path: Path) -> None:
    found: Diff = diff(make(tmp_path / "a.trace"), make(tmp_path / "b.trace", position=POSITION + 50))
    assert (found.compared, found.only_in_first, found.only_in_second) == (0, 24, 24)
    assert found.equal is None and found.by_layer == [] and found.by_request[0].equal is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_experts": 9}, "experts_per_layer differ"),
        ({"moe_layers": [0, 1, 2]}, "moe_layers differ"),
        ({"position": 0}, "its request 0 has two tokens at position 0"),
    ],
)
def test_refusals(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        diff(make(tmp_path / "a.trace"), make(tmp_path / "b.trace", **fields))
