"""Shared experts that an engine puts among the routed ones: found, named, and left out where that is asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.errors import ImportFormatError
from tracekit.importers import ImportOptions, import_trace
from tracekit.trace import Trace

TOKENS, LAYERS, EXPERTS = 120, 3, 16
ROUTED = random_experts(np.random.default_rng(3), TOKENS, LAYERS, EXPERTS, 3)
WEIGHTS = np.random.default_rng(4).random((TOKENS, LAYERS, 4)).astype(np.float32)


def fused(shared: Any, slot: int = 3) -> np.ndarray:
    """The routed choices with a slot of shared experts, broadcast to [tokens, layers]."""
    return np.insert(ROUTED, slot, np.broadcast_to(shared, (TOKENS, LAYERS)), axis=2)


def log(experts: np.ndarray) -> bytes:
    lines = [
        {"token": token, "layer": layer, "ids": ids, "weights": WEIGHTS[token, layer, : len(ids)].tolist()}
        for token, rows in enumerate(experts.tolist())
        for layer, ids in enumerate(rows)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def bring(tmp_path: Path, chosen: np.ndarray, **options: Any) -> Trace:
    number = len(list(tmp_path.iterdir()))
    source = tmp_path / f"{number}.jsonl"
    source.write_bytes(log(chosen))
    return import_trace("jsonl", source, tmp_path / f"{number}.trace", ImportOptions(**options))


@pytest.mark.parametrize(
    ("experts", "slot", "words"),
    [
        (fused(16), 3, "slot 3 holds expert 16 in every row"),
        (fused(16, slot=0), 0, "slot 0 holds expert 16 in every row"),
        (fused(16 + np.arange(TOKENS)[:, None] % 2), 3, "slot 3 holds experts 16 to 17 and no other"),
        (fused(16 + np.random.default_rng(0).integers(4, size=(TOKENS, LAYERS))), 3, "experts 16 to 19 and no other"),
        (fused(16 + np.arange(LAYERS)), 3, "slot 3 holds one expert of each layer in every row"),
    ],
    ids=["constant", "first", "alternating", "ranks", "by layer"],
)
def test_a_fused_shared_expert(tmp_path: Path, experts: np.ndarray, slot: int, words: str) -> None:
    found = [note for note in bring(tmp_path, experts).manifest.notes if "--drop-slot" in note]
    assert len(found) == 1 and words in found[0] and f"--drop-slot {slot}" in found[0]
    trace = bring(tmp_path, experts, drop_slot=(slot,))
    np.testing.assert_array_equal(trace.experts, ROUTED)
    assert trace.weights is not None and not [note for note in trace.manifest.notes if "--drop-slot" in note]
    kept = np.delete(WEIGHTS, slot, axis=2)
    np.testing.assert_allclose(trace.weights, kept, atol=1e-3)
    assert trace.manifest.experts_per_layer == [EXPERTS] * LAYERS and trace.top_k == 3


def test_an_expert_in_every_choice_but_in_no_one_slot(tmp_path: Path) -> None:
    experts = np.random.default_rng(1).permuted(fused(16), axis=2)
    assert "expert 16 is in every choice, in changing slots: a shared expert" in bring(tmp_path, experts).manifest.notes


def test_routing_has_no_such_slot(tmp_path: Path) -> None:
    """Not even routing that prefers its highest experts, or that is sorted by number."""
    for experts in (ROUTED, np.sort(ROUTED, axis=2), np.concatenate([ROUTED % 3, [[[15, 14, 13]] * 3]])[-1:]):
        notes = bring(tmp_path, experts).manifest.notes
        assert not any("slot" in note or "shared" in note for note in notes)


def test_more_experts_than_are_routed(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"expert id 16, --experts says there are 16; slot 3 .* --drop-slot 3"):
        bring(tmp_path, fused(16), experts=16)
    assert bring(tmp_path, fused(16), experts=16, drop_slot=(3,)).manifest.experts_per_layer == [16] * LAYERS


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="--drop-slot is 4, choices have slots 0 to 3"):
        bring(tmp_path, fused(16), drop_slot=(4,))
    with pytest.raises(ImportFormatError, match="leaves no slot of 3"):
        bring(tmp_path, ROUTED, drop_slot=(0, 1, 2))


def test_fields_that_are_not_read_are_named(tmp_path: Path) -> None:
    lines = [
        json.dumps({"token": token, "layer": 0, "ids": [1, 2], "mood": 0.5, "domain": "code", "full": [0.1, 0.2]})
        for token in range(4)
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    trace = import_trace("jsonl", tmp_path / "log", tmp_path / "a.trace")
    assert "fields not read: mood, domain, full" in trace.manifest.notes
