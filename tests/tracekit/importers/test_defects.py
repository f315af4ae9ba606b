"""Known defects of recordings: refused where they cannot be real, noted where they may be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import random_experts
from tracekit.edit import Selection, merge, slice_trace
from tracekit.errors import ImportFormatError
from tracekit.importers import import_trace
from tracekit.rows import UNUSED
from tracekit.trace import Trace

EXPERTS = random_experts(np.random.default_rng(5), 200, 3, 32, 4)


def bring(tmp_path: Path, experts: np.ndarray, **arrays: Any) -> Trace:
    source = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
    np.savez(source, experts=experts, experts_per_layer=32, **arrays)
    return import_trace("npz", source, source.with_suffix(".trace"))


def refusal(tmp_path: Path, experts: np.ndarray, **arrays: Any) -> str:
    with pytest.raises(ImportFormatError) as error:
        bring(tmp_path, experts, **arrays)
    assert ".npz" in str(error.value)
    return str(error.value)


def test_sound_routing_has_no_notes(tmp_path: Path) -> None:
    assert bring(tmp_path, EXPERTS).manifest.notes == []
    # Every token uses every expert: the layers are the same, as they must be.
    everything = np.tile(np.arange(32), (50, 3, 1))
    assert "warm-up" in bring(tmp_path, everything).manifest.notes[0]


def test_experts_listed_twice(tmp_path: Path) -> None:
    wrong = EXPERTS.copy()
    wrong[150, 2, 3] = wrong[150, 2, 0]
    words = refusal(tmp_path, wrong)
    assert "row 150, MoE layer 2" in words and "listed twice" in words and "record again" in words


def test_replicated_layers(tmp_path: Path) -> None:
    """Also when the slots are in another order; not when it may be chance; not when one token differs."""
    wrong = EXPERTS.copy()
    wrong[:, 2] = wrong[:, 0, ::-1]
    assert "layers 0 and 2 choose the same experts for all 200 tokens" in refusal(tmp_path, wrong)
    assert bring(tmp_path, wrong[:8]).tokens == 8
    wrong[7, 2] = [28, 29, 30, 31]
    assert bring(tmp_path, wrong).manifest.notes == []


@pytest.mark.parametrize(("same", "noted"), [(10, False), (16, True), (120, True), (200, True)])
def test_constant_beginnings(tmp_path: Path, same: int, noted: bool) -> None:
    experts = EXPERTS.copy()
    experts[:same] = experts[0]
    notes = bring(tmp_path, experts).manifest.notes
    assert bool(notes) == noted
    if noted:
        assert (f"first {same} tokens" if same < 200 else "all 200 tokens") in notes[0] and "warm-up" in notes[0]


def test_runs_anywhere(tmp_path: Path) -> None:
    """Warm-ups in the middle and at the end are named with the slice that leaves them out, as far as steps allow."""
    experts = EXPERTS.copy()
    experts[60:90], experts[180:] = experts[60], experts[180]
    notes = bring(tmp_path, experts).manifest.notes
    assert notes[0].startswith("steps 60:90: 30 tokens in a row choose") and "slice --steps :60,90: leaves" in notes[0]
    assert notes[1].startswith("steps 180:200: 20 tokens") and notes[1].endswith("--steps :180,200: leaves them out")
    # Padding within a pass has no step of its own.
    step = np.repeat(np.arange(4), 50)
    (note, *_) = bring(tmp_path, experts, step=step, phase=np.zeros(200, np.uint8)).manifest.notes
    assert note.startswith("steps 1:2: 30 tokens") and note.endswith("beside others")


def test_a_slice_takes_its_notes_along(tmp_path: Path) -> None:
    experts = EXPERTS.copy()
    experts[60:90], experts[180:] = experts[60], experts[180]
    trace = bring(tmp_path, experts)
    cut = slice_trace(trace, Selection(steps=":60,90:190"), tmp_path / "cut.trace")
    assert cut.tokens == 160 and not any("60:90" in note for note in cut.manifest.notes)
    assert any(note.endswith("(cut to 10 of these steps)") for note in cut.manifest.notes)
    both = merge([cut, trace], tmp_path / "both.trace")
    (first, middle, last) = [note for note in both.manifest.notes if note.startswith("steps ")]
    assert first.startswith("steps 180:200: part 0: 20 tokens") and first.endswith("(cut to 10 of these steps)")
    assert middle.startswith("steps 250:280: part 1: 30 tokens in a row") and ":250,280: leaves" in middle
    assert last.startswith("steps 370:390: part 1: ") and both.step[-1] == 389


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies(tmp_path: Path, copies: int) -> None:
    """A log of several ranks, or of a run and the same run again."""
    trace = bring(tmp_path, np.concatenate([EXPERTS[:40]] * copies))
    (note,) = trace.manifest.notes
    assert note.startswith(f"steps 40:{40 * copies}: rows 40 to {40 * copies - 1} repeat the 40 before")
    cut = slice_trace(trace, Selection(steps=":40"), tmp_path / "cut.trace")
    np.testing.assert_array_equal(cut.experts, EXPERTS[:40])


def test_a_pass_twice(tmp_path: Path) -> None:
    experts = EXPERTS[:30].copy()
    experts[18:24] = experts[12:18]
    step = np.repeat(np.arange(5), 6)
    trace = bring(tmp_path, experts, step=step, request=np.tile(np.arange(6), 5))
    assert trace.manifest.notes == [
        "steps 3:4: this pass repeats the one before row by row: another rank's copy, or a run again; tracekit slice "
        "--steps :3,4: leaves them out"
    ]


def test_generated_tokens_of_one_request_in_one_pass(tmp_path: Path) -> None:
    step = np.repeat(np.arange(50), 4)
    assert "cannot be told apart" in bring(tmp_path, EXPERTS, step=step).manifest.notes[0]
    assert bring(tmp_path, EXPERTS, step=step, request=np.tile(np.arange(4), 50)).manifest.notes == []
    assert bring(tmp_path, EXPERTS, step=step, phase=np.zeros(200, np.uint8)).manifest.notes == []


def test_lost_scores(tmp_path: Path) -> None:
    """Equal weights on consecutive ids: some are noted, most are refused; without weights, ids from 0 on are noted."""
    weights = np.random.default_rng(0).random(EXPERTS.shape)
    experts = EXPERTS.copy()
    assert bring(tmp_path, experts, weights=weights).manifest.notes == []
    experts[50:60] = [7, 8, 9, 10]
    assert bring(tmp_path, experts, weights=weights).manifest.notes == []
    weights[50:60] = 0.25
    (note,) = bring(tmp_path, experts, weights=weights).manifest.notes
    assert "30 of 600 choices (first: row 50, MoE layer 0)" in note and "scores were lost" in note
    experts[50:190], weights[50:190] = [7, 8, 9, 10], 0.25
    assert "scores were lost; record again" in refusal(tmp_path, experts, weights=weights)
    experts[50:190] = [0, 1, 2, 3]
    assert "from 0 on" in bring(tmp_path, experts).manifest.notes[1]


def test_a_shared_expert_in_a_slot(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), 100, 3, 31, 4)
    experts[:, :, 3] = 31
    assert "slot 3 holds expert 31 in every row" in bring(tmp_path, experts).manifest.notes[0]


def test_layers_without_routing(tmp_path: Path) -> None:
    experts = EXPERTS.copy()
    experts[:27, 2] = UNUSED
    assert bring(tmp_path, experts).manifest.notes == ["layer 2 has no routing for 27 of 200 tokens"]
