"""Winners travel: a plan for each machine in one folder, users' policies beside it; and what is not replaced."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import load_plan
from engine.replay.replay import replay
from experiments.cli.main import run as cli
from experiments.study import FinishedStudy, study
from tests.helpers.studies import contents
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import PlanError, StudyError
from tracekit.trace import Trace

MINE = """
from policies.eviction.lru import Lru


class Mine(Lru):
    pass
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("winners")
    rng = np.random.default_rng(3)
    make_trace(folder / "t.trace", random_experts(rng, 80, layers=3), num_experts=8, phase=1)
    (folder / "mine.py").write_text(MINE)
    return folder


def run(place: Path, output: Path, **grid: Any) -> FinishedStudy:
    given = {"capacity": "2/layer", "eviction": f"{place}/mine.py:Mine", "hardware": ["rtx3060", "t4"]}
    given |= {"model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
    return study({"traces": str(place / "t.trace"), "bounds": False, "regret": 0, "grid": given | grid}, output)


def test_one_folder_holds_all_that_runs_elsewhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(place, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "winners").iterdir())
    policy = next(name for name in names if name.startswith("mine-"))
    assert names == [policy, "rtx3060.plan.toml", "t4.plan.toml"]
    assert found.winner_files == [tmp_path / "out" / "winners" / name for name in names[1:]]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "out" / "winners", elsewhere)
    monkeypatch.chdir(tmp_path)
    trace = Trace.open(place / "t.trace")
    expected = replay(trace, next(iter(found.winners.values())), model_shape="mixtral-8x7b", bounds=False).hits
    for plan in (load_plan(elsewhere / "t4.plan.toml"), load_plan(tmp_path / "out" / "winner.plan.toml")):
        assert Path(plan.eviction.policy.rpartition(":")[0]).read_text() == MINE
        assert replay(trace, plan, model_shape="mixtral-8x7b", bounds=False).hits == expected


def test_a_policy_that_was_changed_is_refused(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "out", hardware="t4")
    winners = tmp_path / "out" / "winners"
    (policy,) = winners.glob("*.py")
    policy.write_text(MINE + "# edited\n")
    with pytest.raises(PlanError, match="is not the file that the plan was found with"):
        load_plan(winners / "t4.plan.toml")
    policy.unlink()
    with pytest.raises(PlanError, match="No such file or directory; the policy's file travels with the plan"):
        load_plan(winners / "t4.plan.toml")
    # The next run of the study puts it back, and what an earlier one left goes.
    (winners / "t5.plan.toml").write_text("old")
    run(place, tmp_path / "out", hardware="t4")
    assert load_plan(winners / "t4.plan.toml") and not (winners / "t5.plan.toml").exists()


def test_a_digest_of_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('cache.capacity = "2/layer"\neviction.policy = "lru"\neviction.digest = "00"\n')
    with pytest.raises(PlanError, match=r"eviction\.digest is of a file"):
        load_plan(tmp_path / "p.toml")


def test_another_study_is_not_written_over(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(place, tmp_path / "out", hardware="t4")
    before = contents(tmp_path / "out")
    with pytest.raises(StudyError, match="holds the results of another study: choose another --output, or give"):
        run(place, tmp_path / "out", capacity="3/layer", hardware="t4")
    assert contents(tmp_path / "out") == before
    run(place, tmp_path / "out", capacity=["2/layer", "3/layer"], hardware="t4")  # the same, enlarged
    text = f'traces = "{place}/t.trace"\n[grid]\ncapacity = "5/layer"\n'
    (tmp_path / "s.toml").write_text(text)
    command = ["study", str(tmp_path / "s.toml"), "--output", str(tmp_path / "out")]
    assert cli(command) == 2
    said = capsys.readouterr().err
    assert "holds the results of another study" in said and said.count("\n") == 1
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    asked = []
    monkeypatch.setattr("typer.confirm", lambda text, **_: bool(asked.append(text)))
    assert cli(command) == 2 and len(asked) == 1
    assert cli([*command, "--replace"]) == 0
    assert cli(command) == 0 and len(asked) == 1  # it is this study's folder now
