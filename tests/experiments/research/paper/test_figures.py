"""Figures 1 and 2: quantities with known answers, files that are what they say, and gaps that are named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.research.paper.__main__ import run
from experiments.research.paper.activation import activation
from experiments.research.paper.recall import hit_ratios, recalls
from tests.helpers.traces import make_trace, random_experts
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace


def slow_recall(trace: Trace, distance: int, fetched: int) -> float:
    """Recall counted one needed expert at a time."""
    logits = trace.lookahead(distance)
    assert logits is not None
    found = needed = 0
    for token in range(trace.tokens):
        for layer in range(trace.layers - distance):
            order = sorted(range(trace.num_experts), key=lambda e: (-float(logits[token, layer, e]), e))
            wanted = set(trace.experts[token, layer + distance].tolist())
            needed += len(wanted)
            found += len(wanted & set(order[:fetched]))
    return found / needed


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    rng = np.random.default_rng(5)
    experts = random_experts(rng, tokens=30, layers=4, experts=6, top_k=2)
    ahead = {d: rng.integers(0, 4, (30, 4 - d, 6)).astype(np.float16) for d in (1, 2)}  # many ties
    return make_trace(tmp_path / "t.trace", experts, num_experts=6, lookahead=ahead)


def test_recall_against_counting(trace: Trace) -> None:
    notes: list[str] = []
    found = {(p.distance, p.fetched): p.recall for p in recalls(trace, notes)}
    assert {distance for distance, _ in found} == {1, 2}
    for (distance, fetched), value in found.items():
        assert value == pytest.approx(slow_recall(trace, distance, fetched))
    assert found[1, 6] == 1.0
    assert notes == ["recall 10 layers ahead: the model has only 4 MoE layers"]


def test_perfect_guesses_have_perfect_recall(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(1), tokens=20, layers=3)
    logits = np.zeros((20, 2, 8), np.float16)
    np.put_along_axis(logits, experts[:, 1:].astype(np.int64), np.float16(1), axis=2)
    found = recalls(make_trace(tmp_path / "p.trace", experts, num_experts=8, lookahead={1: logits}), [])
    assert [p.recall for p in found[:2]] == [0.5, 1.0]


def test_activation_knows_what_the_cache_holds(tmp_path: Path) -> None:
    experts = np.array([[[0, 1]], [[1, 2]], [[3, 4]], [[3, 2]]])
    rows = activation(make_trace(tmp_path / "a.trace", experts, num_experts=5), [])
    cells = {(r.token, r.expert): (r.weight > 0, r.cached) for r in rows}
    chosen = {key for key, (is_chosen, _) in cells.items() if is_chosen}
    assert chosen == {(t, int(e)) for t in range(4) for e in experts[t, 0]}
    held = {(1, 0), (1, 1), (2, 1), (2, 2), (3, 3), (3, 4)}  # the two of the token before
    assert {key for key, (_, cached) in cells.items() if cached} == held


def test_activation_follows_the_longest_request_of_single_steps(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(2), tokens=9, layers=2)
    trace = make_trace(
        tmp_path / "r.trace",
        experts,
        num_experts=8,
        step=[0, 0, 0, 1, 2, 3, 4, 5, 5],
        request=[0, 0, 0, 0, 1, 1, 1, 2, 3],
        phase=[PREFILL] * 3 + [DECODE] * 6,
    )
    rows = [r for r in activation(trace, []) if r.weight > 0 and r.layer == 0]
    assert {(r.token, r.expert) for r in rows} == {(t, int(e)) for t in range(3) for e in experts[4 + t, 0]}


def test_hit_ratios_rise_with_the_cache(trace: Trace) -> None:
    ratios = [p.decode_hit_ratio for p in hit_ratios(trace)]
    assert ratios == sorted(ratios) and len(ratios) == 6


def test_files_hold_the_quantities(trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    from experiments.research.paper.figures import write_figures  # needs altair

    written = write_figures(trace, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert found == written["quantities"]
    for name in written["files"]:
        assert (tmp_path / "out" / name).is_file()
    for name in ("activation", "hits", "recall"):
        png = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
    with (tmp_path / "out" / "recall.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["recall"]) for row in rows] == [point["recall"] for point in found["recall"]]


def test_what_a_trace_cannot_tell_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vl_convert")
    experts = random_experts(np.random.default_rng(3), tokens=12, layers=12)
    make_trace(tmp_path / "bare.trace", experts, num_experts=8, phase=PREFILL)
    assert run(["figures", str(tmp_path / "bare.trace"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "recall 10 layers ahead: not recorded (tracekit record --lookahead 10)" in printed.err
    assert "no decode step of a single token" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures.json", "hits.csv", "hits.png"]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["figures", str(tmp_path / "none.trace"), "--output", str(tmp_path)]) == 2
    make_trace(tmp_path / "t.trace", random_experts(np.random.default_rng(3), tokens=4))
    (tmp_path / "file").write_text("")
    assert run(["figures", str(tmp_path / "t.trace"), "--output", str(tmp_path / "file")]) == 2
    assert run(["table3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
