"""Studies from Python: the same as the command leaves, whatever names the study; tables, winners and words of it."""

import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.plan.plan import load_plan
from experiments.cli.main import run as cli
from experiments.study import FinishedStudy, study, study_from_dict
from experiments.study.conditions import Conditions
from tests.helpers.studies import contents
from tracekit.errors import StudyError

TOML = """
traces = "a.trace"
regret = 0
[grid]
capacity = ["2/layer", "4/layer"]
eviction = ["lru", "fifo"]
hardware = ["rtx3060", "t4"]
model_shape = "mixtral-8x7b"
weights = "hqq-2bit"
"""


def test_python_and_the_command_line_leave_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (folder / "own.toml").write_text(TOML)
    monkeypatch.chdir(folder)  # paths in tables are relative to where Python runs
    tables = tomllib.loads(TOML)
    assert cli(["study", "own.toml", "--output", str(tmp_path / "cli"), "--workers", "1"]) == 0
    done: list[float] = []
    found = study("own.toml", tmp_path / "file", workers=2, progress=done.append)
    assert sum(done) == 8 == len(found.results) and found.folder == tmp_path / "file"
    study(tables, tmp_path / "tables")
    study(study_from_dict(tables), tmp_path / "loaded")
    wanted = contents(tmp_path / "cli")
    assert contents(tmp_path / "file") == wanted
    del wanted["study.toml"]
    for name in ("tables", "loaded"):
        written = contents(tmp_path / name)
        kept = tomllib.loads(written.pop("study.toml").decode())
        assert written == wanted and kept == (tables if name == "tables" else {})


def test_what_was_found_is_at_hand(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = study(tomllib.loads(TOML) | {"search": None, "grid": tomllib.loads(TOML)["grid"] | {"batch": [None, 2]}})
    assert set(found.winners) == {
        Conditions(machine, "mixtral-8x7b", batch, "transformers-eager")
        for machine in ("rtx3060", "t4")
        for batch in (None, 2)
    }
    assert next(iter(found.winners.values())) == load_plan(found.folder / "winner.plan.toml")
    assert found.results.equals(pl.read_parquet(found.folder / "results.parquet"))
    beaten = found.comparisons.filter(pl.col("outcome") == "better")
    assert len(found.comparisons) == sum(len(one.comparisons) for one in found.summary.settings) > len(beaten) > 0
    assert (beaten["low"] > 0).all() and {"hardware", "batch", "verdict"} <= set(beaten.columns)
    page = found._repr_html_()
    assert (
        "t4 under transformers-eager at mixtral-8x7b&#x27;s shape, batches of 2" in page
        and beaten["verdict"][0] in page
    )
    pytest.importorskip("altair", reason="altair is not installed: pip install 'moe-tracekit[report]'")
    assert "</html>" in found.report(tmp_path / "r.html").read_text("utf-8")


def test_hits_alone_have_no_comparisons(folder: Path, tmp_path: Path) -> None:
    grid = {"capacity": "2/layer", "eviction": "lru"}
    tables = {"traces": str(folder / "a.trace"), "grid": grid}
    found = study(tables, tmp_path / "out")
    assert len(found.comparisons) == 0 and len(found.winners) == 1
    assert FinishedStudy(tmp_path / "out").winners == found.winners
    # A folder that nobody asked for goes with the object.
    place = study(tables).folder
    with pytest.raises(StudyError, match="holds no finished study"):
        FinishedStudy(place)
