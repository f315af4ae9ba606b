"""A grid over how slots are given out: names, keys, results and what is refused as evidence."""

from pathlib import Path
from typing import Any

import pytest

from engine.decisions.placing import place
from engine.plan.placement import save_placement
from engine.plan.plan import load_plan
from engine.replay.replay import replay
from experiments.study import study
from experiments.study.grid import plan_name
from experiments.study.study_file import study_from_dict
from tests.helpers.traces import skewed_trace
from tracekit.errors import StudyError
from tracekit.trace import Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("placement")
    skewed_trace(found / "profile.trace", 1)
    skewed_trace(found / "test.trace", 2)
    save_placement(place(Trace.open(found / "profile.trace"), "2/layer"), found / "p.placement.toml")
    return found


def tables(**grid: Any) -> dict[str, Any]:
    return {"traces": "test.trace", "regret": 0, "bounds": False, "grid": {"capacity": "4/layer"} | grid}


GRID = {
    "capacity": ["4/layer", ["4/layer", {"layers": "0", "slots": 6}, {"layers": "2", "slots": 2}]],
    "placement": ["none", "p.placement.toml", {"pinned": "popular:1/layer", "profile": "profile.trace"}],
}


def test_every_way_is_a_plan_of_its_own_name(folder: Path) -> None:
    found = study_from_dict(tables(**GRID), folder=folder)
    names = [plan_name(plan) for plan in found.plans]
    assert names == [
        f"lru, {capacity}{pinned}"
        for capacity in ("4/layer", "4/layer; layers 0: 6; layers 2: 2")
        for pinned in ("", ", p.placement.toml pinned", ", popular:1/layer pinned")
    ]
    split = study_from_dict(tables(split=["none", "even", "curve"], split_from="profile.trace"), folder=folder)
    assert [plan_name(plan) for plan in split.plans] == [
        "lru, 4/layer",
        "lru, 4/layer, split even",
        "lru, 4/layer, split curve of profile.trace",
    ]


@pytest.mark.parametrize("grid", [{"split": "curve"}, {"split": "even", "split_from": "profile.trace"}])
def test_a_split_by_curve_and_its_trace_belong_together(folder: Path, grid: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"grid\.split_from, a trace, belong together"):
        study_from_dict(tables(**grid), folder=folder)


def test_rows_are_what_replays_find_and_the_winner_travels(folder: Path, tmp_path: Path) -> None:
    found = study(study_from_dict(tables(**GRID), folder=folder), tmp_path / "out")
    trace = Trace.open(folder / "test.trace")
    rows = {row["plan"]: row for row in found.results.iter_rows(named=True)}
    for plan in study_from_dict(tables(**GRID), folder=folder).plans:
        expected = replay(trace, plan, bounds=False)
        row = rows[plan_name(plan)]
        assert (row["hits"], row["hits_pinned"]) == (expected.hits, expected.hits_by.pinned)
    for path in found.winner_files:
        winner = load_plan(path)
        assert replay(trace, winner, bounds=False).hits == max(row["hits"] for row in rows.values())


def test_a_placement_of_the_same_requests_fails_its_cells_alone(folder: Path, tmp_path: Path) -> None:
    grid = {"placement": ["none", {"pinned": "popular:1/layer", "profile": "test.trace"}]}
    found = study(study_from_dict(tables(**grid), folder=folder), tmp_path / "out")
    errors = {row["plan"]: row["error"] for row in found.results.iter_rows(named=True)}
    assert errors["lru, 4/layer"] is None
    assert "no evidence" in errors["lru, 4/layer, popular:1/layer pinned"]
