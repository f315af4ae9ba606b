"""`tracekit replay --events`."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.cli.main import run
from tests.helpers.traces import make_trace, random_experts


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    experts = random_experts(np.random.default_rng(0), tokens=40, layers=3, experts=6, top_k=2)
    make_trace(tmp_path / "t.trace", experts, num_experts=6)
    return tmp_path / "t.trace"


def test_counts_of_the_log_are_the_replays(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "e.parquet"
    assert run(["replay", str(trace), "--capacity", "2/layer", "--events", str(log), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = dict(pl.read_parquet(log)["kind"].value_counts().iter_rows())
    assert kinds["hit"] == found["hits"] > 0
    assert kinds["load"] == found["misses"] > 0


def test_errors_are_one_line(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = tmp_path / "none" / "e.parquet"
    assert run(["replay", str(trace), "--capacity", "2/layer", "--events", str(wanted)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(wanted) in printed.err


def test_an_impossible_plan_leaves_no_log(trace: Path, tmp_path: Path) -> None:
    assert run(["replay", str(trace), "--capacity", "9/layer", "--events", str(tmp_path / "e.parquet")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]
