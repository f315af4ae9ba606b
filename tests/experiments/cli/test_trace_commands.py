"""`tracekit import` and `tracekit info` as a user runs them: words, exit codes, JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.main import run
from tests.helpers.traces import random_experts
from tracekit import Trace


@pytest.fixture
def routing(tmp_path: Path) -> Path:
    experts = random_experts(np.random.default_rng(0), 80, 3, 8, 2)
    np.savez(tmp_path / "routing.npz", experts=experts, expert_bytes=2**20, experts_per_layer=8)
    return tmp_path / "routing.npz"


def test_import_then_info(routing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = routing.with_name("mine.trace")
    assert run(["import", "npz", str(routing), "--output", str(trace)]) == 0
    assert "80 tokens in 80 steps, 3 MoE layers, top-2 of 8 experts" in capsys.readouterr().out

    assert run(["info", str(trace), "--verify"]) == 0
    out = capsys.readouterr().out
    for words in (
        "one decode token's demand",
        "6.0 experts, 6.0 MiB",
        "80 (0 prefill, 80 decode)",
        "warning: no gate weights",
    ):
        assert words in out


def test_json(routing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = routing.with_name("mine.trace")
    assert run(["import", "npz", str(routing), "--output", str(path), "--json"]) == 0
    imported = json.loads(capsys.readouterr().out)
    assert run(["info", str(path), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert imported["digest"] == info["digest"] == Trace.open(path).digest
    assert (info["tokens"], info["lookups"], info["token_cycle_bytes"]) == (80, 480, 6 * 2**20)
    assert any("independent" in warning for warning in info["warnings"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "none.trace"], "does not exist"),
        (["info", "routing.npz"], "is not a trace"),
        (["import", "nzp", "routing.npz", "--output", "a.trace"], "did you mean 'npz'"),
        (["import", "bigmoe-csv", "routing.npz", "--output", "a.trace"], "is not a route trace"),
        (["import", "npz", "none.npz", "--output", "a.trace"], "does not exist"),
        (["import", "npz", "routing.npz", "--output", "no/a.trace"], "there is no directory no"),
        (["import", "npz", "routing.npz", "--output", "."], "exists"),
    ],
)
def test_errors_are_one_line(
    routing: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(routing.parent)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err and captured.err.count("\n") == 1
    assert sorted(entry.name for entry in routing.parent.iterdir()) == ["routing.npz"]
