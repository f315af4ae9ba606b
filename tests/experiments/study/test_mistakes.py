"""What cannot be studied is one line, or a row with an error; nothing is lost by it."""

import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.cli.main import run as cli
from experiments.study import Threads, load_study, run_study, study_from_dict
from tracekit.errors import PlanError, PolicyError, StudyError, TracekitError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"capacity": "4/layer", "cpu_experts": "auto"}}, "cpu_experts is gone: write grid.miss"),
        ({"grid": {"capacity": "4/layer", "evictoin": "lru"}}, "grid has no key 'evictoin'; did you mean 'eviction'?"),
        ({"objectve": "p99"}, "unknown field `objectve`; did you mean 'objective'?"),
        ({"objective": "speed"}, "objective"),
        ({"objective": "p99"}, "about time: give grid.hardware"),
        ({"grid": {"eviction": "lru"}}, "grid.capacity says how many"),
        ({"grid": {"capacity": "many"}}, "capacity 'many' is not understood"),
        ({"grid": {"capacity": 4}}, "give text, in quotes"),
        ({"grid": {"capacity": "4/layer", "eviction": "lruu"}}, "unknown eviction policy 'lruu'; did you mean 'lru'?"),
        ({"grid": {"capacity": "4/layer", "hardware": "rtx306"}}, "did you mean 'rtx3060'?"),
        ({"grid": {"capacity": "4/layer", "prefetch": {"predictor": "gate", "distanc": 1}}}, "no parameter 'distanc'"),
        ({"grid": {"capacity": "4/layer", "prefetch": {"policy": "gate"}}}, "lacks predictor"),
        ({"grid": {"capacity": "4/layer", "batch": 0}}, "whole numbers from 1"),
        ({"max_device_bytes": "4/layer"}, 'give bytes, such as "12GiB"'),
        ({"baseline": "lruu"}, "unknown eviction policy 'lruu'; did you mean 'lru'?"),
        ({"statistics": {"level": 2}}, "statistics.level"),
        ({"statistics": {"least_effect": -1}}, "statistics.least_effect = -1"),
        ({"grid": {"capacity": "4/layer", "eviction": []}}, "grid.eviction is empty"),
        ({"grid": {"capacity": "4/layer", "eviction": {"policy": "lru-k", "k": []}}}, "grid.eviction: k is empty"),
        ({"grid": {"capacity": "4/layer", "eviction": "a\0b.py:Mine"}}, "holds a null byte"),
        ({"grid": {"capacity": "4/layer", "hardware": ["t4", "./t4.toml"]}}, "two of grid.hardware are named 't4'"),
        (
            {"grid": {"capacity": "4/layer", "model_shape": ["mixtral-8x7b", "./mixtral.toml"]}},
            "two of grid.model_shape are named 'mixtral-8x7b'",
        ),
        ({"traces": []}, "traces is empty"),
        ({"search": {"rounds": 0}}, "search.rounds = 0"),
        ({"search": {"keep": 1.0}}, "search.keep = 1.0"),
        ({"search": {"least": 0}}, "search.least = 0"),
        ({"search": {"kep": 0.5}}, "unknown field `kep`"),
        ({"search": "yes"}, "search"),
        ({"max_device_bytes": 0}, "max_device_bytes = 0: give bytes"),
        ({"max_device_bytes": -5}, "max_device_bytes = -5: give bytes"),
        ({"max_device_bytes": "0GiB"}, "max_device_bytes = 0: give bytes"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    tables = {"traces": "a.trace", "grid": {"capacity": "4/layer"}} | change
    for profile, copy in (("hardware/profiles/t4", "t4"), ("shapes/models/mixtral-8x7b", "mixtral")):
        shutil.copy(ROOT / "engine" / f"{profile}.toml", folder / f"{copy}.toml")
    with pytest.raises(TracekitError) as error:
        run_study(study_from_dict(tables, "study s.toml", folder), tmp_path / "out", Threads(1))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, StudyError | PlanError | PolicyError | TracekitError)


def test_a_huge_grid_is_refused_before_it_is_made() -> None:
    many = list(range(1, 3000))
    grid = {"capacity": "4/layer", "eviction": {"policy": "lru-k", "k": many}}
    grid["prefetch"] = {"predictor": "gate", "count": many, "staging": many}
    start = time.monotonic()
    with pytest.raises(StudyError, match=f"the grid has {2999**3} cells, more than 1000000"):
        study_from_dict({"traces": "a.trace", "grid": grid})
    assert time.monotonic() - start < 5


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="is no study's folder"):
        run_study(load_study(folder / "study.toml"), tmp_path, Threads(1))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_impossible_plans_are_reported_and_hold_nothing_up(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "some.toml").write_text(
        'traces = "a.trace"\n[grid]\ncapacity = ["2/layer", "99/layer"]\n'
        'prefetch = ["none", {predictor = "gate", distance = 2}]\n'
    )
    assert cli(["study", str(folder / "some.toml"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "warning: 3 of 4 cells could not be replayed" in said.err
    assert "has only 8 experts" in said.err and "lookahead logits at distance 2" in said.err
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert rows["error"].null_count() == 1 and rows["hits"].null_count() == 3
    (folder / "none.toml").write_text('traces = "a.trace"\n[grid]\ncapacity = "99/layer"\n')
    assert cli(["study", str(folder / "none.toml"), "--output", str(tmp_path / "none")]) == 1
