"""What a study says beside its figures: who was compared, what was left out and why; commands that can be copied."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.plan.plan import Plan, plan_from_dict
from engine.replay.replay import replay
from experiments.cli.main import run as cli
from experiments.study import Threads, run_study
from experiments.study.conditions import Conditions
from experiments.study.grid import plan_name
from experiments.study.notes import amount
from experiments.study.study_content import report_content
from experiments.study.study_file import study_from_dict
from experiments.study.study_json import Summary
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import StudyError
from tracekit.trace import Trace


def studied(folder: Path, out: Path, **tables: Any) -> Summary:
    """The summary of a study of `a.trace`."""
    return run_study(study_from_dict({"traces": "a.trace", **tables}, folder=folder), out, Threads(1))


def test_one_pass_compares_request_by_request(folder: Path, tmp_path: Path) -> None:
    """One pass counts all cache sizes of LRU; the others, which decide alike, are replayed: no request differs."""
    (tmp_path / "again.py").write_text("from policies.eviction.lru import Lru\n\n\nclass Again(Lru):\n    pass\n")
    grid = {"capacity": "4/layer", "eviction": ["lru", {"policy": "lru-k", "k": 1}, f"{tmp_path}/again.py:Again"]}
    grid |= {"model_shape": "mixtral-8x7b"}
    for place, objective in enumerate(("bytes", "hit_ratio")):
        (setting,) = studied(folder, tmp_path / f"{place}", grid=grid, objective=objective).settings
        assert "lru, 4/layer" in setting.statement and "level with" in setting.ranking[0]
        assert {found.outcome for found in setting.comparisons} == {"identical"}
        (answer,) = setting.answers
        assert answer.startswith("lru-k (k 1) and ") and answer.endswith(" against lru: the same at 4/layer")
    (setting,) = studied(folder, tmp_path / "two", grid=grid | {"hardware": "h100"}).settings
    assert "lru, 4/layer" in setting.statement and "lru" in setting.ranking[0]


def test_one_pass_warns_as_a_replay_does(folder: Path, tmp_path: Path) -> None:
    grid = {"capacity": ["3"], "eviction": "lru"}
    warnings = studied(folder, tmp_path / "out", grid=grid).warnings
    plan = plan_from_dict({"cache": {"capacity": "3"}})
    trace = Trace.open(folder / "a.trace")
    assert warnings == list(replay(trace, plan).warnings)
    assert any("token cycle" in warning for warning in warnings)


def test_unknown_sizes_are_not_called_too_large(folder: Path, tmp_path: Path) -> None:
    make_trace(tmp_path / "bare.trace", Trace.open(folder / "a.trace").experts, num_experts=8)
    grid = {"capacity": ["1/layer", "2/layer"], "eviction": "lfu"}
    tables = {"traces": "bare.trace", "max_device_bytes": "1GiB", "grid": grid}
    (setting,) = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1)).settings
    assert "sizes of experts are unknown" in setting.statement and "grid.model_shape" in setting.statement
    assert setting.notes == ["2 plans left out, of unknown size: give grid.model_shape, or leave out max_device_bytes"]


def test_regret_is_of_plans_that_fit(folder: Path, tmp_path: Path) -> None:
    grid = {"capacity": ["1/layer", "2/layer", "7/layer"], "eviction": "lru", "hardware": "t4"}
    grid |= {"model_shape": "mixtral-8x7b"}
    summary = studied(folder, tmp_path / "out", grid=grid, regret=3)
    (setting,) = report_content(tmp_path / "out").settings
    assert summary.settings[0].too_large > 0
    assert setting.regrets[0].label == summary.settings[0].winner
    assert len(setting.regrets) == summary.settings[0].contestants < 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: {},
        lambda found: [],
        lambda found: found | {"settings": [{}]},
        lambda found: found | {"warnings": 5},
        lambda found: found | {"settings": [one | {"room_bytes": "x"} for one in found["settings"]]},
    ],
)
def test_a_summary_of_another_version_is_one_line(
    damage: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in finished.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "study.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert cli(["report", str(tmp_path), "--output", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err
    assert "study.json is of another version, or damaged: run tracekit study again" in said and said.count("\n") == 1


def test_commands_can_be_copied(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "two words"
    place.mkdir()
    (place / "a b.trace").symlink_to(folder / "a.trace")
    (place / "s.toml").write_text('traces = "a b.trace"\n[grid]\ncapacity = "2/layer"\nmodel_shape = "mixtral-8x7b"\n')
    assert cli(["study", str(place / "s.toml"), "--output", str(place / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("The best plans: hits and bytes at mixtral-8x7b's shape")
    assert "\nhits and bytes at mixtral-8x7b's shape: best of 1 plan: lru, 2/layer" in said
    assert shlex.quote(str(place / "out")) in said.splitlines()[-1]
    replayed = report_content(place / "out").reproduce[-1]
    assert [part for part in shlex.split(replayed) if part.endswith("a b.trace")]


def test_words_for_settings_and_sizes() -> None:
    assert str(Conditions("t4", "m", 2)) == "t4 at m's shape, batches of 2"
    assert str(Conditions(None, None, 1)) == "hits and bytes, batches of 1"
    assert [amount(size) for size in (15 << 30, 9 << 20, 2048, 12)] == ["15.0 GiB", "9.0 MiB", "2.0 KiB", "12 bytes"]


def test_fused_experts_are_an_axis_and_named() -> None:
    """Decisions are the same: only the plan's name and its time tell them apart."""
    grid = {"capacity": "1/layer", "compute_experts": ["each", "fused"], "hardware": "h100"}
    each, fused = study_from_dict({"traces": "a.trace", "grid": grid}).plans
    assert (each.compute.experts, fused.compute.experts) == ("each", "fused")
    assert plan_name(fused) == plan_name(each) + ", fused"


def test_machines_come_under_every_engine(tmp_path: Path) -> None:
    """Told apart in titles and commands."""
    make_trace(tmp_path / "t.trace", random_experts(np.random.default_rng(0), 10), num_experts=8)
    grid = {"capacity": "2/layer", "hardware": ["t4", "h100"], "engine": ["transformers-eager", "graph-fused"]}
    study = study_from_dict({"traces": "t.trace", "grid": grid}, folder=tmp_path)
    found = [(machine.name, machine.engine.name) for machine in study.machines if machine is not None]
    assert found == [(machine, engine) for machine in grid["hardware"] for engine in grid["engine"]]
    conditions = Conditions("t4", None, None, "graph-fused")
    assert str(conditions) == "t4 under graph-fused" and conditions.options == " --hardware t4 --engine graph-fused"
    with pytest.raises(StudyError, match=r"grid\.engine is about time: give grid\.hardware"):
        study_from_dict({"traces": "t.trace", "grid": {"capacity": "2/layer", "engine": "graph-fused"}})


def test_misses_and_the_kernel_are_part_of_a_plan_s_name() -> None:
    plan = Plan("2/layer", compute_experts="fused", miss="auto")
    assert plan_name(plan) == plan_name(plan, stored=False) == "lru, 2/layer, fused, misses auto"
    split = Plan("2/layer", miss={"where": "split", "share": 0.5}, admission={"policy": "score", "threshold": 0.2})
    assert plan_name(split) == "lru, 2/layer, admits score (threshold 0.2), misses split (share 0.5)"
    bounded = Plan("2/layer", admission={"per_step": 4, "per_layer": "even"})
    assert plan_name(bounded) == "lru, 2/layer, admits always (per_step 4, per_layer even)"
