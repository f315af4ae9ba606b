"""Studies with precision tiers: an axis of the grid, rows as replays say them, a loss that is theirs alone."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from engine.plan.plan import Plan, plan_from_toml
from engine.replay.replay import replay
from experiments.quality.measurement import Measurement
from experiments.study import Threads, run_study, study_from_dict
from experiments.study.study_content import report_content
from tests.helpers.quality import measurement
from tests.helpers.studies import traced

BELOW: dict[str, Any] = {"low": "fp16", "capacity": "2/layer", "rule": "miss-below", "threshold": 0.5}
GRID = {
    "capacity": ["3/layer", "5/layer"],
    "weights": "fp32",
    "precision": ["none", BELOW | {"threshold": [0.0, 0.5]}, {"low": "fp16", "capacity": "2/layer", "rule": "rank"}],
    "hardware": "rtx4090",
}
SIZES = {"expert_bytes": [6_000_000] * 3, "expert_params": [1_500_000] * 3}


def measured() -> Measurement:
    """A measurement of one threshold at 3/layer."""
    found = measurement({"fp32": 0.02})
    plan = Plan("3/layer", weights="fp32", precision=BELOW)
    (one,) = found.plans
    return msgspec.structs.replace(
        found, plans=[msgspec.structs.replace(one, plan=plan.to_dict(), weights=plan.weights)]
    )


def test_rows_and_what_is_known_of_their_loss(tmp_path: Path) -> None:
    weights = np.sort(np.random.default_rng(5).random((60, 3, 2)), axis=2)[:, :, ::-1]
    trace = traced(tmp_path / "a.trace", 1, weights=weights, **SIZES)
    (tmp_path / "quality.json").write_text(measured().to_json())
    tables = {"traces": "a.trace", "grid": GRID, "quality": "quality.json", "quality_loss": "1 %", "regret": 2}
    summary = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1))
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert len(rows) == 8 and rows["error"].null_count() == 8
    assert rows["plan"].n_unique() == 8
    for row in rows.iter_rows(named=True):
        tiers = row["precision"]
        own = replay(trace, plan_from_toml(row["plan_toml"], "row"), "rtx4090", bounds=False)
        assert (row["hits"], row["misses"], row["bytes_loaded"]) == (own.hits, own.misses, own.bytes_loaded)
        assert own.time is not None and row["tokens_per_second"] == own.time.tokens_per_second
        assert (row["bound_hit_ratio"] is None) == (tiers is not None) == ("precision tiers" in row["warning_codes"])
        if own.precision is not None:
            assert row["low_share"] == own.precision["low"].lookups / own.lookups
        known = {None: 0.0, "2/layer of fp16 (miss-below, threshold 0.5)": 0.02}.get(tiers)
        known = None if tiers is not None and row["capacity"] == "5/layer" else known
        assert (row["quality_loss"] is None) == (known is None)
    (setting,) = summary.settings
    assert setting.winner is not None and "fp16" not in setting.winner, "what loses more, or nobody knows what"
    shown = [row for part in report_content(tmp_path / "out").settings for row in part.rows]
    assert len({(row.capacity, row.weights) for row in shown}) == 8
