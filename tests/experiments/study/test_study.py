"""Studies: every row is the replay's own result, from as few passes as decisions allow."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from experiments.cli.main import run as cli
from experiments.study import Threads, load_study, run_study, study_from_dict
from experiments.study.cell_results import measure
from experiments.study.cells import cells_of, groups
from experiments.study.schema import COLUMNS, EFFECT_COLUMNS, SCHEMA, SEARCH_COLUMNS
from tracekit.trace import Trace

ROOT = Path(__file__).resolve().parents[3]


def test_every_row_is_what_replay_says(finished: Path, folder: Path) -> None:
    rows = pl.read_parquet(finished / "results.parquet")
    assert dict(rows.schema) == SCHEMA
    study = load_study(folder / "study.toml")
    assert rows["cell"].n_unique() == len(rows)
    for row, cell in list(zip(rows.iter_rows(named=True), cells_of(study), strict=True))[::7]:
        if row["error"] is not None:
            assert row["eviction"] == "belady" and "into = " not in row["plan"]
            continue
        found = replay(Trace.open(cell.routing.path), cell.plan, cell.machine, model_shape=cell.shape)
        assert found.time is not None and found.bounds is not None and found.estimates is not None
        assert found.time.fits == (found.time.tpot_ms is not None)
        same = {
            "tokens": found.tokens,
            "lookups": found.lookups,
            "hits": found.hits,
            "hit_ratio": found.hit_ratio,
            "loads": found.loads,
            "bypasses": found.bypasses,
            "prefetches": found.prefetches,
            "bytes_loaded": found.bytes_loaded,
            "hits_prefetch": found.hits_by.prefetch,
            "decode_hit_ratio": found.phases.decode.hit_ratio,
            "decode_bytes_loaded": found.phases.decode.bytes_loaded,
            "tokens_per_second": found.time.tokens_per_second,
            "tpot_p99_ms": None if found.time.tpot_ms is None else found.time.tpot_ms.p99,
            "ttft_ms": found.time.ttft_ms,
            "total_s": found.time.total_s,
            "stall_demand_s": found.time.stall_s["demand"],
            "prefetch_late": found.time.prefetches["late"],
            "link_utilisation": found.time.link_utilisation,
            "device_bytes": found.estimates.device_bytes,
            "joules_per_token": found.estimates.joules_per_token,
            "bound_hit_ratio": found.bounds.hit_ratio,
            "bound_tokens_per_second": found.bounds.best_tokens_per_second,
            "link_bound_tokens_per_second": found.bounds.link_tokens_per_second,
            "warnings": found.warnings,
        }
        assert {name: row[name] for name in same} == same, row["plan"]
        # Requests share the time of decode steps, and nothing is left over.
        if found.time.tokens_per_second is not None:
            decode_s = found.phases.decode.tokens / found.time.tokens_per_second
            assert sum(row["request_ns"]) / 1e9 == pytest.approx(decode_s, rel=1e-6)
        assert sum(row["request_tokens"]) == row["decode_tokens"]
        assert sum(row["request_bytes"]) == pytest.approx(row["decode_bytes_loaded"], abs=8)


def test_decisions_are_shared_by_machines_and_formats(folder: Path) -> None:
    cells = cells_of(load_study(folder / "study.toml"))
    sizes = [len(group) for group in groups(cells)]
    assert set(sizes) == {4} and sum(sizes) == len(cells)  # two machines, two formats


def test_capacity_in_bytes_is_decided_for_each_format(folder: Path) -> None:
    """The same bytes hold other numbers of experts: one group, but decisions of its own for each format."""
    grid = {"capacity": "500MiB/layer", "weights": ["hqq-2bit", "hqq-8bit"], "hardware": "t4"}
    tables = {"traces": "a.trace", "grid": grid | {"model_shape": "mixtral-8x7b"}}
    (group,) = groups(cells_of(study_from_dict(tables, folder=folder)))
    small, large = measure(Threads(1).shared, group)
    assert small["hits"] > large["hits"]
    for row, cell in zip((small, large), group, strict=True):
        found = replay(Trace.open(folder / "a.trace"), cell.plan, cell.machine, model_shape=cell.shape)
        assert row["hits"] == found.hits and found.time is not None
        assert row["tokens_per_second"] == found.time.tokens_per_second


def test_without_machines_one_pass_answers_for_all_sizes(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from experiments.study import cell_results

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.setattr(cell_results, "run", refused)
    grid = {"capacity": ["0/layer", "3/layer", "8/layer", "4", "25%"], "eviction": ["lru", "belady"]}
    study = study_from_dict({"traces": ["a.trace", "b.trace"], "bounds": False, "grid": grid}, folder=folder)
    summary = run_study(study, tmp_path / "out", Threads(1))
    assert summary.failed == 0
    for row in pl.read_parquet(tmp_path / "out" / "results.parquet").iter_rows(named=True):
        plan = plan_from_dict({"cache": {"capacity": row["capacity"]}, "eviction": {"policy": row["eviction"]}})
        found = replay(Trace.open(row["trace"]), plan, bounds=False)
        assert (row["hits"], row["lookups"], row["decode_hits"]) == (
            found.hits,
            found.lookups,
            found.phases.decode.hits,
        )


def test_a_dry_run_counts_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert cli(["study", str(folder / "study.toml"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["traces"], found["plans"], found["machines"]) == (2, 80, 2)
    assert (found["cells"], found["passes"]) == (320, 80)
    assert found["seconds"] > 0
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_page_lists_every_column() -> None:
    page = (ROOT / "docs" / "studies.md").read_text()
    for name, _, words in (*COLUMNS, *EFFECT_COLUMNS, *SEARCH_COLUMNS):
        assert f"| `{name}` | {words} |" in page, name
