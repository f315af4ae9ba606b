"""A study goes on from what is there: nothing is computed twice, and a killed one loses nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.study import Threads, load_study, run_study, sources, study_from_dict
from experiments.study.cell_results import measure
from experiments.study.cells import cells_of
from experiments.study.workers import Workers
from tests.helpers.studies import contents, killed_at, study_command
from tracekit.errors import TracekitError

ROOT = Path(__file__).resolve().parents[3]


def test_threads_do_not_show(finished: Path, folder: Path, tmp_path: Path) -> None:
    run_study(load_study(folder / "study.toml"), tmp_path / "one", Threads(1))
    assert contents(tmp_path / "one") == contents(finished)


def test_finished_cells_are_not_computed_again(finished: Path, folder: Path) -> None:
    class Idle:
        """Draws curves, and refuses to replay anything but what failed."""

        def run(self, work: Any, items: Any) -> Any:
            if work is measure:
                assert all(cell.plan.prefetch.target == "cache" for group in items for cell in group)
            return Threads(1).run(work, items)

    before = contents(finished)
    idle: Workers = Idle()
    run_study(load_study(folder / "study.toml"), finished, idle)
    assert contents(finished) == before


def test_an_edited_policy_is_another_policy(folder: Path, tmp_path: Path) -> None:
    source = (ROOT / "policies" / "eviction" / "fifo.py").read_text()
    (tmp_path / "mine.py").write_text(source)
    tables = {"traces": str(folder / "a.trace"), "grid": {"capacity": "2/layer", "eviction": "./mine.py:Fifo"}}
    (before,) = cells_of(study_from_dict(tables, folder=tmp_path))
    (again,) = cells_of(study_from_dict(tables, folder=tmp_path))
    assert before.key == again.key
    program = (
        "from pathlib import Path; from experiments.study import study_from_dict; "
        "from experiments.study.cells import cells_of; "
        f"print(cells_of(study_from_dict({tables!r}, folder=Path({str(tmp_path)!r})))[0].key)"
    )
    (tmp_path / "mine.py").write_text(source + "\n# edited\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() != before.key


@pytest.mark.parametrize(
    "module", ["engine.simulator.timeline", "engine.replay.bounds", "policies.eviction.belady_bypass"]
)
def test_an_edited_simulator_gives_another_result(module: str, folder: Path, monkeypatch: Any) -> None:
    tables = {"traces": "a.trace", "grid": {"capacity": "2/layer"}}
    (before,) = cells_of(study_from_dict(tables, folder=folder))
    edited = ROOT / f"{module.replace('.', '/')}.py"
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"\n# edited" if path == edited else b""))
    for digest in (sources.sources_digest, sources.policies_digest):
        digest.cache_clear()
    (after,) = cells_of(study_from_dict(tables, folder=folder))
    monkeypatch.undo()
    for digest in (sources.sources_digest, sources.policies_digest):
        digest.cache_clear()
    assert after.key != before.key
    assert cells_of(study_from_dict(tables, folder=folder))[0].key == before.key


def test_every_module_that_a_replay_and_a_cell_load_is_in_the_key(folder: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from experiments.study.cells import cells_of
from experiments.study.study_file import study_from_dict
from experiments.study.cell_results import measure
from experiments.study.shared import SharedRoutings
from experiments.study.sources import ENTRIES, PACKAGES, import_closure, policies_digest
from engine.replay.replay import replay
from policies.compiled import source_modules
from policies.registry import eviction_policy, prefetcher
grid = {{"capacity": "2/layer", "eviction": "lfu", "prefetch": ["gate", "none"], "hardware": "t4", "batch": 2,
        "model_shape": "mixtral-8x7b"}}
cells = cells_of(study_from_dict({{"traces": "a.trace", "grid": grid}}, folder=Path({str(folder)!r})))
assert not [row["error"] for row in measure(SharedRoutings(), cells) if row.get("error")]
replay(cells[0].routing.open(), cells[0].plan, "t4", model_shape="mixtral-8x7b")
known = set(import_closure(*ENTRIES))
for names in (("lfu", "gate"), ("lru", "none"), ("belady-bypass", "none")):  # lru: a plan's default is checked
    known |= {{m.__name__ for m in source_modules((eviction_policy(names[0]), prefetcher(names[1])))}}
ours = {{name for name in sys.modules if name.partition(".")[0] in PACKAGES}}
assert len(known) > 80 and "engine.simulator.plain" in known, known
print(*sorted(ours - known))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_whatever_a_row_follows_from_is_in_its_key(folder: Path) -> None:
    def key(**other: Any) -> str:
        grid = {"capacity": "2/layer", "hardware": "t4", "model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
        top = {"bounds": other.pop("bounds")} if "bounds" in other else {}
        (cell,) = cells_of(study_from_dict({"traces": "a.trace", **top, "grid": grid | other}, folder=folder))
        return cell.key

    changes: list[dict[str, Any]] = [
        *({"bounds": False}, {"batch": 2}, {"hardware": "h100"}, {"model_shape": "mixtral-8x22b"}),
        *(
            {"weights": "hqq-4bit"},
            {"miss": "auto"},
            {"admission": "second-miss"},
            {"capacity": "3/layer"},
            {"eviction": "lfu"},
        ),
        {"prefetch": "popular"},
    ]
    keys = [key(), *(key(**change) for change in changes)]
    assert len(set(keys)) == len(keys)


def test_where_a_policy_lies_does_not_show(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Resumed from another folder, with one more trace: the same plan, under the path it has from there."""
    (tmp_path / "mine.py").write_text((ROOT / "policies" / "eviction" / "lfu.py").read_text())
    tables: dict[str, Any] = {"traces": [str(folder / "a.trace")], "baseline": "./mine.py:Lfu"}
    tables["grid"] = {"capacity": "2/layer", "eviction": ["./mine.py:Lfu", "lru"]}
    monkeypatch.chdir(tmp_path.parent)
    run_study(study_from_dict(tables, folder=Path(tmp_path.name)), tmp_path / "out", Threads(1))
    assert set(pl.read_parquet(tmp_path / "out" / "results.parquet")["eviction"]) == {
        "lru",
        f"{tmp_path.name}/mine.py:Lfu",
    }
    monkeypatch.chdir(tmp_path)
    tables["traces"].append(str(folder / "b.trace"))
    summary = run_study(study_from_dict(tables), tmp_path / "out", Threads(1))
    assert set(pl.read_parquet(tmp_path / "out" / "results.parquet")["eviction"]) == {"lru", "mine.py:Lfu"}
    assert summary.settings[0].contestants == 2


def test_killed_again_and_again_it_ends_the_same(finished: Path, folder: Path, tmp_path: Path) -> None:
    """kill -9 at various moments, then to the end: the same bytes as without."""
    out = tmp_path / "out"
    assert killed_at((1, 8, 20, 45, 70), folder / "study.toml", out, workers=2) >= 3
    command, environment = study_command(folder / "study.toml", out, workers=2), os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    ours, theirs = contents(out), contents(finished)
    del ours["study.toml"], theirs["study.toml"]
    assert ours == theirs


def test_damaged_pieces_are_computed_again(finished: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(folder / "study.toml"), out, Threads(1))
    first, second, third, *_ = sorted(out.glob("cells/*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    pl.read_parquet(third).with_columns(pl.col("hits") + 1).write_parquet(third)
    (out / "cells" / "x.parquet.writing").write_bytes(b"half")
    run_study(load_study(folder / "study.toml"), out, Threads(1))
    assert contents(out) == contents(finished)


def test_one_writer_at_a_time(folder: Path, tmp_path: Path) -> None:
    from experiments.study.study_folder import StudyFolder

    with StudyFolder(tmp_path / "out"), pytest.raises(TracekitError, match="written by another process"):
        run_study(load_study(folder / "study.toml"), tmp_path / "out", Threads(1))
