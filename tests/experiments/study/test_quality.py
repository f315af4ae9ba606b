"""Quality in studies: a column from a measurement, a floor under the winner, and the frontier in the report."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.cli.main import run as cli
from experiments.report import charts, quality_chart
from experiments.report.content import PolicyRow
from experiments.report.front import front
from experiments.report.setting_sections import details
from experiments.study import Threads, run_study, study_from_dict
from experiments.study.study_content import report_content
from experiments.study.study_json import SettingSummary, Summary
from tests.helpers.quality import measurement
from tests.helpers.studies import traced
from tracekit.errors import StudyError

LOSSES = {"hqq-4bit": 0.003, "hqq-3bit": 0.012, "hqq-2bit": 0.04}
GRID = {
    "capacity": ["2/layer", "3/layer"],
    "eviction": ["lru", "fifo"],
    "weights": [*LOSSES, "q4_k", "bf16"],
    "hardware": "h100",
    "model_shape": "mixtral-8x7b",
}


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, Any]:
    place = folder / "quality"
    place.mkdir()
    (place / "quality.json").write_text(measurement(LOSSES).to_json())
    return {"traces": "a.trace", "regret": 1, "grid": GRID, "quality": "quality"}


def ran(tables: dict[str, Any], folder: Path, out: Path) -> tuple[Summary, SettingSummary, pl.DataFrame]:
    summary = run_study(study_from_dict(tables, folder=folder), out, Threads(1))
    (setting,) = summary.settings
    return summary, setting, pl.read_parquet(out / "results.parquet")


@pytest.fixture(scope="module")
def free(tables: dict[str, Any], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that knows the losses and sets no floor."""
    out = tmp_path_factory.mktemp("free")
    ran(tables, folder, out)
    return out


def test_losses_are_a_column(free: Path) -> None:
    rows, measured = pl.read_parquet(free / "results.parquet"), measurement(LOSSES)
    for row in rows.iter_rows(named=True):
        found = (row["quality_loss"], row["quality_loss_low"], row["quality_loss_high"])
        if row["weights"] == "bf16":  # as the model is stored
            assert found == (0, 0, 0)
        elif row["weights"] == "q4_k":
            assert found == (None, None, None)
        else:
            (one,) = [plan for plan in measured.plans if plan.weights.experts == row["weights"]]
            assert found == (one.loss.value, one.loss.low, one.loss.high)
    summary = json.loads((free / "study.json").read_text())
    assert summary["provenance"]["quality"]["documents"] == 12
    (setting,) = summary["settings"]
    assert setting["loss"]["value"] == pytest.approx(0.04, rel=0.1)
    assert any("that of mini on 12 documents" in note for note in setting["notes"])
    assert any(note.startswith("not known is what is lost by q4_k") for note in setting["notes"])


@pytest.mark.parametrize(
    ("most", "wins"), [("5 %", "hqq-2bit"), ("2 %", "hqq-3bit"), ("0.5 %", "hqq-4bit"), (0, "bf16")]
)
def test_the_fastest_within_the_floor_wins(
    most: Any, wins: str, tables: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Against every row: the fastest of those whose loss was measured and is small enough."""
    summary, setting, rows = ran(tables | {"quality_loss": most}, folder, tmp_path)
    share = float(str(most).removesuffix(" %")) / 100
    assert summary.quality_loss == pytest.approx(share)
    able = rows.filter(pl.col("quality_loss") <= share)
    best = able.sort("tokens_per_second", descending=True).row(0, named=True)
    assert setting.winner == best["plan"] and best["weights"] == wins
    assert (setting.contestants, setting.too_lossy, setting.too_large) == (len(able), len(rows) - len(able), 0)
    assert all(leader.loss is not None and leader.loss.value <= share for leader in setting.best)
    said = "; ".join(setting.notes)
    assert "4 plans left out, of which it is not known what they lose: q4_k; measure them" in said
    assert ("left out, losing more than" in said) == (len(able) < len(rows) - 4)
    assert f"at a loss of quality of {100 * best['quality_loss']:.3g} %" in setting.statement
    # What hinders plans is told of plans that may win.
    hindered = rows.join(pl.read_parquet(tmp_path / "regret.parquet"), on="cell", how="semi")
    assert (hindered["quality_loss"] <= share).all()


def test_an_interval_beyond_the_floor_is_said(tables: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    loss = measurement(LOSSES).plans[0].loss
    assert loss.high is not None
    _, setting, _ = ran(tables | {"quality_loss": (loss.value + loss.high) / 2}, folder, tmp_path)
    assert setting.loss == loss and any("the winner may lose more than" in note for note in setting.notes)


def test_nobody_within_the_floor(tables: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    grid = GRID | {"weights": ["hqq-2bit", "q4_k"]}
    _, setting, _ = ran(tables | {"grid": grid, "quality_loss": "1 %"}, folder, tmp_path)
    assert setting.winner is None
    assert setting.statement == "no winner: of what fits no plan is known to lose at most 1 %"
    assert not (tmp_path / "winner.plan.toml").exists()


def test_another_measurement_computes_nothing_again(free: Path, tables: dict[str, Any], folder: Path) -> None:
    other = folder / "other.json"
    other.write_text(measurement({"q4_k": 0.001}).to_json())
    pieces = {path.name for path in (free / "cells").iterdir()}
    _, setting, rows = ran(tables | {"quality": "other.json", "quality_loss": "1 %"}, folder, free)
    assert {path.name for path in (free / "cells").iterdir()} == pieces
    assert setting.plan_toml is not None and "q4_k" in setting.plan_toml
    assert rows.filter(pl.col("weights") == "q4_k")["quality_loss"].null_count() == 0
    ran(tables, folder, free)


def test_a_search_drops_what_loses_too_much(tables: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    traced(folder / "long.trace", 3, tokens=400)
    search = {"rounds": 1, "keep": 0.5, "least": 1}
    asked = tables | {"traces": "long.trace", "quality_loss": "2 %", "search": search}
    _, setting, rows = ran(asked, folder, tmp_path)
    found = pl.read_parquet(tmp_path / "search.parquet")
    lossy = found.filter(pl.col("outcome") == "too lossy")
    assert set(lossy["plan"].str.extract(r"(hqq-2bit|q4_k)$").unique()) == {"hqq-2bit", "q4_k"}
    assert setting.search[0].too_lossy == len(lossy) == 8
    assert not set(rows["weights"]) & {"hqq-2bit", "q4_k"}
    assert any(note.startswith("8 plans left out by the search") for note in setting.notes)
    assert setting.plan_toml is not None and "hqq-3bit" in setting.plan_toml


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quality": None, "quality_loss": "1 %"}, "needs a measurement"),
        ({"quality_loss": "much"}, 'such as "0.5 %"'),
        ({"quality": "nowhere"}, "tracekit quality makes one"),
        ({"quality": "a.trace"}, "tracekit quality makes one"),
    ],
)
def test_floors_that_cannot_be(change: dict[str, Any], says: str, tables: dict[str, Any], folder: Path) -> None:
    given = {key: value for key, value in (tables | change).items() if value is not None}
    with pytest.raises(StudyError, match=re.escape(says)) as caught:
        study_from_dict(given, label="study s.toml", folder=folder)
    assert str(caught.value).startswith("study s.toml: ")


def test_the_frontier_is_drawn(free: Path, tables: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    (setting,) = report_content(free).settings
    drawn: dict[str, charts.Chart] = {}
    look = charts.looks({row.name: row.is_bound for row in setting.rows})
    text = "".join(details(0, setting, look, drawn))
    assert "Speed against quality" in text and "Loss of quality" in text
    spec = json.dumps(drawn["chart-quality-0"].spec)
    fastest = [row for row in quality_chart.fastest([row for row in setting.rows if row.loss is not None])]
    assert [row.weights for row in fastest] == ["bf16", *LOSSES]
    for row in fastest:
        assert row.loss is not None and f'"loss": {row.loss}' in spec and f'"rate": {row.tokens_per_second}' in spec
    assert "allowed" not in drawn["chart-quality-0"].sentence
    ran(tables | {"quality_loss": "0.5 %"}, folder, tmp_path)
    (setting,) = report_content(tmp_path).settings
    drawn.clear()
    details(0, setting, look, drawn)
    assert "loses more than the 0.5 % allowed" in drawn["chart-quality-0"].sentence
    assert setting.best[0].loss.startswith("0.3")


def test_the_frontier_is_what_nothing_beats() -> None:
    """Against the definition, for rows drawn at random."""

    def row(loss: float, speed: float) -> PolicyRow:
        return PolicyRow(
            name="lru",
            capacity="2/layer",
            prefetch="none",
            hit_ratio=0.5,
            decode_hit_ratio=0.5,
            hits_prefetched=0.0,
            tokens_per_second=speed,
            bound_tokens_per_second=None,
            bytes_loaded_per_token=None,
            loss=loss,
        )

    rows = [row((7 * n % 11) / 100, float(5 * n % 13)) for n in range(20)]
    kept = front(rows, quality_chart.loss_of)
    for one in rows:
        beaten = any(
            other.loss is not None
            and one.loss is not None
            and (other.loss, -(other.tokens_per_second or 0)) != (one.loss, -(one.tokens_per_second or 0))
            and other.loss <= one.loss
            and (other.tokens_per_second or 0) >= (one.tokens_per_second or 0)
            for other in rows
        )
        assert (one in kept) == (not beaten)


def test_the_terminal_shows_losses(
    tables: dict[str, Any], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    study = folder / "floor.toml"
    study.write_text(tomli_w.dumps(tables | {"quality_loss": "0.5 %"}))
    assert cli(["study", str(study), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "loss of quality" in out and re.search(r"0\.3\d % \[0\.2\d, 0\.3\d\]", out)
