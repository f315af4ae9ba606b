"""A small study of two traces, and what it leaves."""

from pathlib import Path

import pytest

from experiments.study import Threads, load_study, run_study
from tests.helpers.studies import traced

TOML = """
traces = ["a.trace", "b.trace"]
regret = 1

[grid]
capacity = ["2/layer", "50%"]
eviction = ["lru", {policy = "lru-k", k = [2, 3]}, "belady"]
prefetch = ["none", {predictor = "gate", count = [1, 2], target = ["staging", "cache"]}]
weights = ["hqq-2bit", {experts = "hqq-4bit", attention = "hqq-4bit"}]
hardware = ["rtx3060", "t4"]
model_shape = "mixtral-8x7b"
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    traced(place / "a.trace", 1)
    traced(place / "b.trace", 2, tokens=44, requests=5)
    (place / "study.toml").write_text(TOML)
    return place


@pytest.fixture(scope="session")
def finished(folder: Path) -> Path:
    summary = run_study(load_study(folder / "study.toml"), folder / "out", Threads(2))
    assert summary.cells == 2 * 2 * 4 * 5 * 2 * 2
    return folder / "out"
