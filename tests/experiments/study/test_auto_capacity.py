"""Capacity `auto` in a study: sized for each machine, format and context, as a replay sizes it; decided once for each
size."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.hardware import load_hardware
from engine.plan.plan import load_plan
from engine.replay.passes import run
from engine.replay.replay import replay
from engine.shapes import load_shape
from experiments.study import Threads, run_study
from experiments.study import cell_results as measuring
from experiments.study.cells import cells_of
from experiments.study.study_file import Study, study_from_dict
from tests.helpers.studies import contents, traced
from tracekit.errors import StudyError
from tracekit.trace import Trace

GRID: dict[str, Any] = {
    "capacity": "auto",
    "eviction": ["lru", "lfu"],
    "weights": ["hqq-4bit", "hqq-2bit"],
    "hardware": ["rtx3060", "t4"],
    "model_shape": "mixtral-8x7b",
}


def study(folder: Path, grid: dict[str, Any] = GRID, **tables: Any) -> Study:
    return study_from_dict({"traces": "a.trace", "regret": 1, "bounds": False, "grid": grid} | tables, folder=folder)


def sizes(made: Study) -> dict[tuple[str, str], str]:
    """The capacity of each machine and format."""
    found = {}
    for cell in cells_of(made):
        assert cell.machine is not None and cell.plan.weights.experts is not None
        found[cell.machine.name, cell.plan.weights.experts] = cell.plan.cache.capacity
    return found


def slots(capacity: str) -> int:
    return int(capacity.removesuffix("/layer"))


def test_each_machine_and_format_has_what_a_replay_takes(folder: Path) -> None:
    """And by context, batch and limit: never more where there is less room, and keys tell all of them apart."""
    plain = study(folder)
    for cell in cells_of(plain):
        given = plain.plans[0].replace(weights=cell.plan.weights, eviction=cell.plan.eviction)
        assert given.cache.capacity == "auto" and cell.machine is not None
        shape = load_shape("mixtral-8x7b")
        taken = replay(Trace.open(folder / "a.trace"), given, cell.machine, model_shape=shape, bounds=False)
        assert taken.provenance["plan"]["cache"]["capacity"] == cell.plan.cache.capacity
    long = study(folder, serve={"context": 16384})
    alone = study(folder, serve={"context": 16384, "batch": 1})  # the trace decodes two at a time
    small = study(folder, max_device_bytes="9GiB")
    for more, less in ((plain, long), (alone, long), (plain, small)):
        assert all(slots(sizes(less)[key]) <= slots(size) for key, size in sizes(more).items())
        assert sizes(more) != sizes(less)
    keys = [{cell.key for cell in cells_of(one)} for one in (plain, long, alone)]
    assert len(keys[0] | keys[1] | keys[2]) == 3 * 8


def test_traces_share_a_capacity_and_decisions_are_taken_once_for_each(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the longest trace leaves room for; a listed capacity that `auto` also became is no second cell."""
    traced(tmp_path / "a.trace", 1)
    traced(tmp_path / "b.trace", 2, tokens=44, requests=5)
    decided = []

    def counted(trace: Trace, spec: Any, targets: Any, **how: Any) -> Any:
        decided.append((trace.path, spec.capacity, spec.eviction))
        return run(trace, spec, targets, **how)

    monkeypatch.setattr(measuring, "run", counted)
    grid = GRID | {"hardware": ["rtx3060", "rtx4090", "t4"], "weights": "hqq-2bit", "capacity": ["8/layer", "auto"]}
    made = study(tmp_path, grid, traces=["a.trace", "b.trace"], regret=0)
    cells = cells_of(made)
    capacities = {(c.machine.name, c.plan.cache.capacity) for c in cells if c.machine and c.capacity_given == "auto"}
    assert len(capacities) == 3 and ("rtx4090", "8/layer") in capacities
    assert len(cells) == 2 * 2 * 5
    summary = run_study(made, tmp_path / "out", Threads(1))
    assert summary.failed == 0 and len(decided) == len(set(decided)) == 2 * 2 * len({size for _, size in capacities})
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert set(rows.filter(capacity_given="auto")["capacity"]) == {size for _, size in capacities}
    assert all(name.split(", ")[1] == size for name, size in rows.select("plan", "capacity").iter_rows())


def test_what_it_became_is_said_and_is_what_the_winner_has(folder: Path, tmp_path: Path) -> None:
    made = study(folder, serve={"context": 4096})
    summary = run_study(made, tmp_path / "out", Threads(1))
    own = sizes(made)
    for setting in summary.settings:
        slots = [f"{own[str(setting.hardware), word]}, {word}" for word in ("hqq-4bit", "hqq-2bit")]
        assert f"capacity auto became {'; '.join(slots)}" in setting.notes
        assert not any("a larger cache wins" in note for note in setting.notes)
    winner = load_plan(tmp_path / "out" / "winner.plan.toml")
    assert winner.cache.capacity == own["rtx3060", str(winner.weights.experts)] and winner.serve.context == 4096
    before = contents(tmp_path / "out")
    run_study(made, tmp_path / "out", Threads(2))
    assert contents(tmp_path / "out") == before


def test_what_fits_nowhere_is_a_row_that_says_so(folder: Path, tmp_path: Path) -> None:
    grid = GRID | {"weights": ["bf16", "hqq-2bit"], "hardware": "rtx3060", "eviction": "lru"}
    summary = run_study(study(folder, grid, serve={"context": 2048}), tmp_path / "out", Threads(1))
    (error,) = summary.errors
    assert error.cells == summary.failed == 1 and "one slot per layer" in error.error
    assert load_hardware("rtx3060").name in error.error
    assert json.loads((tmp_path / "out" / "study.json").read_text())["settings"][0]["winner"]


def test_without_a_machine_nothing_says_how_much_that_is(folder: Path) -> None:
    with pytest.raises(StudyError, match=r'study: capacity "auto" is what fits on a machine: give grid\.hardware'):
        study(folder, {"capacity": "auto"}, objective="bytes")
