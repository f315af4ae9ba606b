"""Plans that need more of the device than there is: no candidates, counted in words, not in the chart of speeds."""

import json
from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from engine.hardware import load_hardware
from experiments.report import charts
from experiments.report.charts import Chart
from experiments.report.content import Setting
from experiments.report.setting_sections import details
from experiments.study import Threads, run_study
from experiments.study.study_content import report_content
from experiments.study.study_file import study_from_dict
from tracekit.caution import Code


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T4 holds few of Mixtral's experts in sixteen bits; an H100 all of these."""
    grid = {"capacity": ["1/layer", "5/layer", "6/layer", "7/layer"], "hardware": ["t4", "h100"]}
    tables = {"traces": "a.trace", "regret": 0, "grid": grid | {"eviction": "lru", "model_shape": "mixtral-8x7b"}}
    place = tmp_path_factory.mktemp("room")
    run_study(study_from_dict(tables, folder=folder), place, Threads(1))
    return place


def test_what_does_not_fit_is_counted_not_listed(out: Path) -> None:
    """Rows keep their warnings."""
    summary = json.loads((out / "study.json").read_text())
    t4, h100 = summary["settings"]
    rows = pl.read_parquet(out / "results.parquet").filter(hardware="t4")
    large = rows.filter(pl.col("device_bytes") > load_hardware("t4").device.memory_bytes)
    assert 0 < len(large) < len(rows)
    for texts, codes in large.select("warnings", "warning_codes").iter_rows():
        found = dict(zip(codes, texts, strict=True))
        assert "does not fit" in found["does not fit"] and set(found) <= set(get_args(Code))
    assert f"{len(large)} plans left out, too large for 15.0 GiB" in t4["notes"]
    assert not any("left out" in note for note in h100["notes"])
    assert not any("does not fit" in warning for warning in summary["warnings"])


def drawn(setting: Setting) -> tuple[str, dict[str, Chart]]:
    """The setting's part of the page, and its charts."""
    found: dict[str, Chart] = {}
    look = charts.looks({row.name: row.is_bound for row in setting.rows})
    return "".join(details(0, setting, look, found)), found


def test_what_does_not_fit_has_no_speed(out: Path) -> None:
    t4, h100 = report_content(out).settings
    fitting = [row for row in t4.rows if t4.fits(row)]
    assert 0 < len(fitting) < len(t4.rows)
    text, found = drawn(t4)
    assert "Tokens per second of the plans that fit" in text
    speeds = json.dumps(found["chart-speed-0"].spec)
    for row in t4.rows:
        assert (row.tokens_per_second is not None) == t4.fits(row)
        if row in fitting:
            assert f'"rate": {row.tokens_per_second}' in speeds
    text, found = drawn(h100)
    assert "of the plans that fit" not in text
    assert "does not fit" not in found["chart-memory-0"].sentence


def test_where_nothing_fits_all_is_drawn(out: Path) -> None:
    t4, _ = report_content(out).settings
    none = Setting(title="t4", rows=t4.rows, room=1.0)
    text, found = drawn(none)
    assert "of the plans that fit" not in text
    speeds = json.dumps(found["chart-speed-0"].spec)
    assert all(f'"rate": {row.tokens_per_second}' in speeds for row in t4.rows if row.tokens_per_second is not None)
