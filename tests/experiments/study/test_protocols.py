"""Protocols as axes of a study: caches that start anew with each request, and warm ones, with their bounds."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments.study import Threads, run_study
from experiments.study.study_file import study_from_dict
from tests.helpers.traces import make_trace, random_experts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two traces of three requests, one after the other; 3 layers, top-2 of 8."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        experts = random_experts(rng, tokens=60, layers=3)
        request, position = np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3)
        make_trace(tmp_path / f"{name}.trace", experts, num_experts=8, request=request, position=position)
    return tmp_path


def rows_of(folder: Path, out: str = "out", **grid: Any) -> dict[str, dict[str, Any]]:
    study = study_from_dict({"traces": "a.trace", "grid": {"capacity": "3/layer"} | grid}, folder=folder)
    run_study(study, folder / out, Threads(1))
    return {row["plan"]: row for row in pl.read_parquet(folder / out / "results.parquet").iter_rows(named=True)}


def test_a_reset_is_another_plan_with_bounds_of_its_own(folder: Path) -> None:
    rows = rows_of(folder, warm=["keep", "reset"], eviction=["lru", "belady"])
    assert set(rows) == {
        f"{policy}, 3/layer{how}" for policy in ("lru", "belady") for how in ("", ", reset by request")
    }
    for policy in ("lru", "belady"):
        kept, emptied = rows[f"{policy}, 3/layer"], rows[f"{policy}, 3/layer, reset by request"]
        assert kept["error"] is None and emptied["error"] is None
        assert emptied["hits"] < kept["hits"]
        assert emptied["hit_ratio"] <= emptied["bound_hit_ratio"] < kept["bound_hit_ratio"]


def test_a_warm_cache_is_named_after_its_trace(folder: Path) -> None:
    (cold,) = rows_of(folder, "cold", eviction="lfu").values()
    warm = rows_of(folder, warm="b.trace", eviction="lfu")
    ((name, row),) = warm.items()
    assert name == "lfu, 3/layer, warmed with b.trace"
    assert row["error"] is None and row["misses"] < cold["misses"] + 24
    assert row["hit_ratio"] <= row["bound_hit_ratio"] and row["bound_hit_ratio"] > cold["bound_hit_ratio"]
