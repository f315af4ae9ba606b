"""Studies with routing policies: an axis of the grid, first-order rows, no bound of theirs, and a loss by the plan."""

import shutil
from pathlib import Path

import msgspec
import polars as pl
import pytest

from engine.plan.plan import Plan
from engine.replay.replay import replay
from experiments.quality.measurement import Measurement
from experiments.study import Threads, cells, run_study, study_from_dict
from experiments.study.study_content import report_content
from tests.helpers.quality import measurement
from tests.helpers.routing_traces import logits_trace
from tracekit.errors import PlanError

PRIOR = {"policy": "cache-prior", "strength": 0.6}
GRID = {
    "capacity": ["4/layer", "6/layer"],
    "routing": ["none", PRIOR, "adaptive-k"],
    "hardware": "rtx4090",
}
SIZES = {"expert_bytes": [3_000_000] * 3, "expert_params": [1_500_000] * 3}


def measured() -> Measurement:
    """A measurement of the plans with routing at 4/layer."""
    found = measurement({"bf16": 0.02})
    (one,) = found.plans
    plans = [Plan("4/layer", routing=PRIOR), Plan("9", routing="adaptive-k")]
    return msgspec.structs.replace(
        found,
        plans=[msgspec.structs.replace(one, plan=plan.to_dict(), weights=plan.weights) for plan in plans],
    )


def test_rows_winner_and_report(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "a.trace", **SIZES)
    (tmp_path / "quality.json").write_text(measured().to_json())
    tables = {"traces": "a.trace", "grid": GRID, "quality": "quality.json", "regret": 2}
    summary = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1))
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert len(rows) == 6 and rows["error"].null_count() == 6
    for row in rows.iter_rows(named=True):
        altered = row["routing"] != "none"
        assert (row["routing_label"] == "first-order estimate") == altered
        assert ("first order" in row["warning_codes"]) == altered
        expected = {"none": (0.0, 0.0), "cache-prior": (0.02, None), "adaptive-k": (0.02, 0.02)}[row["routing"]]
        loss = expected[row["capacity"] == "6/layer"]
        assert (row["quality_loss"] is None) == (loss is None)
        assert loss is None or abs(row["quality_loss"] - loss) < 0.005
        routing = {"none": "none", "cache-prior": PRIOR, "adaptive-k": "adaptive-k"}[row["routing"]]
        own = replay(trace, Plan(row["capacity"], routing=routing), "rtx4090")
        assert (row["hits"], row["misses"]) == (own.hits, own.misses)
        assert own.time is not None and row["tokens_per_second"] == own.time.tokens_per_second
        if altered:
            assert own.routing is not None and row["altered_share"] == own.routing.altered_share
            assert row["dropped_weight"] == own.routing.dropped_weight
        # Bounds are of what the gates chose, whatever the plan alters.
        assert own.bounds is not None and row["bound_hit_ratio"] == own.bounds.hit_ratio
    assert rows["bound_hit_ratio"].n_unique() == 2
    (setting,) = summary.settings
    assert setting.winner is not None and "cache-prior (strength 0.6)" in setting.winner
    assert any("first-order estimate" in text for text in summary.warnings)
    shown = [row for part in report_content(tmp_path / "out").settings for row in part.rows]
    assert {row.routing for row in shown} == {"", "cache-prior (strength 0.6)", "adaptive-k"}
    assert all((row.bound_tokens_per_second is None) == bool(row.routing) for row in shown)


def test_a_floor_knows_which_plan_was_measured(tmp_path: Path) -> None:
    logits_trace(tmp_path / "a.trace", **SIZES)
    (tmp_path / "quality.json").write_text(measured().to_json())
    tables = {"traces": "a.trace", "grid": GRID, "quality": "quality.json", "quality_loss": "1 %", "regret": 0}
    summary = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1))
    (setting,) = summary.settings
    assert setting.winner is not None and "prior" not in setting.winner and "adaptive" not in setting.winner
    assert any("cache-prior (strength 0.6) at 6/layer" in note for note in setting.notes)


def test_pruning_by_a_profile_of_the_study_s_folder(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "a.trace", **SIZES)
    logits_trace(tmp_path / "p.trace", seed=1)
    prune = {"policy": "prune", "keep": [5, 6], "profile": "p.trace"}
    tables: dict[str, object] = {"traces": "a.trace", "grid": {"capacity": "6/layer", "routing": ["none", prune]}}
    summary = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1))
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet").filter(pl.col("routing") == "prune")
    assert rows["misses"].max() <= 6 * trace.layers and rows["misses"].n_unique() == 2
    assert summary.settings[0].winner is not None and "prune (of p.trace, keep 5)" in summary.settings[0].winner
    # What the profile holds counts, not that it lies where it did.
    keys = []
    for seed in (1, 2, 1):
        shutil.rmtree(tmp_path / "p.trace")
        logits_trace(tmp_path / "p.trace", seed=seed)
        cells._profile_digest.cache_clear()
        keys.append([cell.key for cell in cells.cells_of(study_from_dict(tables, folder=tmp_path))])
    assert keys[0] == keys[2] != keys[1]
    tables["grid"] = {"capacity": "6/layer", "routing": "prune"}
    with pytest.raises(PlanError, match=r"needs routing\.profile"):
        study_from_dict(tables, folder=tmp_path)
