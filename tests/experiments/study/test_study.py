"""Studies: every row is the replay's own result, nothing is computed twice, and a killed one loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.hardware import load_hardware
from engine.plan import load_plan, plan_from_dict
from engine.replay import replay
from experiments.cli.main import run as cli
from experiments.study import Threads, load_study, run_study, study_from_dict
from experiments.study.cells import cells_of, groups
from experiments.study.measure import measure
from experiments.study.passes import Course
from experiments.study.schema import COLUMNS, SCHEMA
from experiments.study.workers import Workers
from tests.helpers.traces import make_trace, random_experts
from tracekit import Trace
from tracekit.errors import PlanError, PolicyError, StudyError, TracekitError

ROOT = Path(__file__).resolve().parents[3]
TOML = """
traces = ["a.trace", "b.trace"]
regret = 1

[grid]
capacity = ["2/layer", "50%"]
eviction = ["lru", {policy = "lru-k", k = [2, 3]}, "belady"]
prefetch = ["none", {predictor = "gate", count = [1, 2], target = ["staging", "cache"]}]
weights = ["hqq-2bit", {experts = "hqq-4bit", attention = "hqq-4bit"}]
hardware = ["rtx3060", "t4"]
model_shape = "mixtral-8x7b"
"""


def traced(path: Path, seed: int, tokens: int = 60, requests: int = 8, **fields: Any) -> Trace:
    rng = np.random.default_rng(seed)
    request = np.arange(tokens) % requests
    logits = rng.normal(size=(tokens, 2, 8)).astype(np.float16)
    return make_trace(
        path,
        random_experts(rng, tokens, layers=3),
        num_experts=8,
        request=request,
        phase=(np.arange(tokens) >= requests).astype(np.uint8),
        step=np.arange(tokens) // 2,
        lookahead={1: logits},
        **fields,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    traced(place / "a.trace", 1)
    traced(place / "b.trace", 2, tokens=44, requests=5)
    (place / "study.toml").write_text(TOML)
    return place


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    summary = run_study(load_study(folder / "study.toml"), folder / "out", Threads(2))
    assert summary["cells"] == 2 * 2 * 4 * 5 * 2 * 2
    return folder / "out"


def contents(folder: Path) -> dict[str, bytes]:
    """Every final file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_every_row_is_what_replay_says(finished: Path, folder: Path) -> None:
    rows = pl.read_parquet(finished / "results.parquet")
    assert dict(rows.schema) == SCHEMA
    study = load_study(folder / "study.toml")
    assert rows["cell"].n_unique() == len(rows)
    for row, cell in list(zip(rows.iter_rows(named=True), cells_of(study), strict=True))[::7]:
        if row["error"] is not None:
            assert row["eviction"] == "belady" and "into = " not in row["plan"]
            continue
        found = replay(Trace.open(cell.routing.path), cell.plan, cell.machine, shape=cell.shape)
        assert found.time is not None and found.bounds is not None and found.estimates is not None
        assert found.time.tpot_ms is not None
        same = {
            "tokens": found.tokens,
            "lookups": found.lookups,
            "hits": found.hits,
            "hit_ratio": found.hit_ratio,
            "loads": found.loads,
            "streams": found.streams,
            "prefetches": found.prefetches,
            "bytes_loaded": found.bytes_loaded,
            "hits_prefetch": found.hits_by.prefetch,
            "decode_hit_ratio": found.phases.decode.hit_ratio,
            "decode_bytes_loaded": found.phases.decode.bytes_loaded,
            "tokens_per_second": found.time.tokens_per_second,
            "tpot_p99_ms": found.time.tpot_ms.p99,
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
        assert found.time.tokens_per_second is not None
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
    study = study_from_dict(
        {
            "traces": "a.trace",
            "grid": {
                "capacity": "500MiB/layer",
                "weights": ["hqq-2bit", "hqq-8bit"],
                "hardware": "t4",
                "model_shape": "mixtral-8x7b",
            },
        },
        folder=folder,
    )
    (group,) = groups(cells_of(study))
    small, large = measure(Threads(1).workshop, group)
    assert small["hits"] > large["hits"]
    for row, cell in zip((small, large), group, strict=True):
        found = replay(Trace.open(folder / "a.trace"), cell.plan, cell.machine, shape=cell.shape)
        assert row["hits"] == found.hits and found.time is not None
        assert row["tokens_per_second"] == found.time.tokens_per_second


def test_without_machines_one_pass_answers_for_all_sizes(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from experiments.study import measure as module

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.setattr(module, "time_all", refused)
    grid = {"capacity": ["0/layer", "3/layer", "8/layer", "4", "25%"], "eviction": ["lru", "belady"]}
    study = study_from_dict({"traces": ["a.trace", "b.trace"], "bounds": False, "grid": grid}, folder=folder)
    summary = run_study(study, tmp_path / "out", Threads(1))
    assert summary["failed"] == 0
    for row in pl.read_parquet(tmp_path / "out" / "results.parquet").iter_rows(named=True):
        plan = plan_from_dict({"cache": {"capacity": row["capacity"]}, "eviction": {"policy": row["eviction"]}})
        found = replay(Trace.open(row["trace"]), plan, bounds=False)
        assert (row["hits"], row["lookups"], row["decode_hits"]) == (
            found.hits,
            found.lookups,
            found.phases.decode.hits,
        )


def test_the_winner_is_the_fastest_that_fits_and_needs_no_future(finished: Path) -> None:
    rows = pl.read_parquet(finished / "results.parquet")
    summary = json.loads((finished / "study.json").read_text())
    for setting in summary["settings"]:
        part = rows.filter((pl.col("hardware") == setting["hardware"]) & ~pl.col("needs_future"))
        memory = load_hardware(setting["hardware"]).device.memory_bytes
        part = part.filter(pl.col("device_bytes") <= memory)
        assert setting["contestants"] + setting["too_large"] == 60
        time = part.group_by("plan").agg((pl.col("decode_tokens") / pl.col("tokens_per_second")).sum(), pl.len())
        best = time.filter(pl.col("len") == 2).sort("decode_tokens")
        assert setting["winner"] == best["plan"][0]
        assert setting["comparisons"] and all(found["requests"] == 13 for found in setting["comparisons"])
    plan = load_plan(finished / "winner.plan.toml")
    assert plan_from_dict(plan.to_dict()) == plan
    regret = pl.read_parquet(finished / "regret.parquet")
    assert len(regret) == 2 * 2  # one plan a trace and machine
    parts = [name for name in regret.columns if name.endswith("_ns") and name != "total_ns"]
    assert (regret.select(pl.sum_horizontal(parts)).to_series() == regret["total_ns"]).all()


def test_max_device_bytes_and_the_other_objectives(folder: Path, tmp_path: Path) -> None:
    tables = {
        "traces": "a.trace",
        "regret": 0,
        "grid": {"capacity": ["2/layer", "7/layer"], "eviction": ["lru", "lfu"], "hardware": "h100"},
    }
    tables["grid"] |= {"model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}  # type: ignore[operator]
    (group, other, *_) = groups(cells_of(study_from_dict(tables, folder=folder)))[::2]
    sizes = [measure(Threads(1).workshop, cells)[0]["device_bytes"] for cells in (group, other)]
    middle = sum(sizes) // 2
    assert sizes[0] < middle < sizes[1]
    for number, (objective, column) in enumerate(
        [("p99", "tpot_p99_ms"), ("bytes", "decode_bytes_loaded"), ("tokens_per_second", "total_s")]
    ):
        for limit in (None, middle):
            out = tmp_path / f"{number}{limit is None}"
            given = tables | {"objective": objective} | ({} if limit is None else {"max_device_bytes": limit})
            (setting,) = run_study(study_from_dict(given, folder=folder), out, Threads(1))["settings"]
            rows = pl.read_parquet(out / "results.parquet")
            if limit is not None:
                rows = rows.filter(pl.col("device_bytes") <= limit)
            assert setting["winner"] in set(rows.filter(pl.col(column) == pl.col(column).min())["plan"])
            assert setting["too_large"] == (0 if limit is None else 2)
    none = study_from_dict(tables | {"max_device_bytes": "1MB"}, folder=folder)
    summary = run_study(none, tmp_path / "last", Threads(1))
    assert (
        summary["settings"][0]["statement"] == "no winner: no plan fits into max_device_bytes and the device's memory"
    )
    assert not (tmp_path / "last" / "winner.plan.toml").exists()


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


@pytest.mark.parametrize("module", ["engine.simulator.timeline", "engine.bounds", "policies.eviction.belady_bypass"])
def test_an_edited_simulator_gives_another_result(module: str, folder: Path, monkeypatch: Any) -> None:
    from experiments.study import cells

    tables = {"traces": "a.trace", "grid": {"capacity": "2/layer"}}
    (before,) = cells_of(study_from_dict(tables, folder=folder))
    edited = ROOT / f"{module.replace('.', '/')}.py"
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"\n# edited" if path == edited else b""))
    for digest in (cells.sources_digest, cells.policies_digest):
        digest.cache_clear()
    (after,) = cells_of(study_from_dict(tables, folder=folder))
    monkeypatch.undo()
    for digest in (cells.sources_digest, cells.policies_digest):
        digest.cache_clear()
    assert after.key != before.key
    assert cells_of(study_from_dict(tables, folder=folder))[0].key == before.key


def test_whatever_a_row_follows_from_is_in_its_key(folder: Path) -> None:
    def key(**other: Any) -> str:
        grid = {"capacity": "2/layer", "hardware": "t4", "model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
        top = {"bounds": other.pop("bounds")} if "bounds" in other else {}
        (cell,) = cells_of(study_from_dict({"traces": "a.trace", **top, "grid": grid | other}, folder=folder))
        return cell.key

    changes: list[dict[str, Any]] = [
        *({"bounds": False}, {"batch": 2}, {"hardware": "h100"}, {"model_shape": "mixtral-8x22b"}),
        *({"weights": "hqq-4bit"}, {"cpu_experts": "auto"}, {"capacity": "3/layer"}, {"eviction": "lfu"}),
        {"prefetch": "popular"},
    ]
    keys = [key(), *(key(**change) for change in changes)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_what_each_request_cost(share: float, folder: Path) -> None:
    """Against plain loops over the tokens; of both objectives that compare times."""
    trace = Trace.open(folder / "a.trace")
    course = Course.of(trace)
    of_step = np.random.default_rng(2).integers(1, 10**9, len(course.phase))
    costs: dict[int, list[float]] = {}
    parts: dict[int, float] = {}
    for step, request, phase in zip(trace.step, trace.request, trace.phase, strict=True):
        if phase == 1:
            costs.setdefault(int(request), []).append(float(of_step[step]))
            parts[int(request)] = parts.get(int(request), 0) + of_step[step] / (trace.step == step).sum()
    assert course.requests.tolist() == sorted(costs)
    of_each = [np.percentile(costs[name], 100 * share) * 4 for name in sorted(costs)]
    assert course.percentile(of_step, share, 4.0).tolist() == pytest.approx(of_each, abs=1)
    assert course.shared(of_step, 4.0).tolist() == pytest.approx([parts[name] * 4 for name in sorted(parts)], abs=1)


def test_what_the_winner_is_compared_with(folder: Path, tmp_path: Path) -> None:
    """The baseline, however slow; costs as the objective asks; no plan that one of the traces refuses."""
    grid: dict[str, Any] = {"capacity": "2/layer", "hardware": "t4", "model_shape": "mixtral-8x7b"}
    policies = ["lru", "lfu", "lfu-perfect", "lfu-aging", "fifo", *({"policy": "lru-k", "k": k} for k in (2, 3, 4))]
    grid |= {"weights": "hqq-2bit", "eviction": [*policies, "random"]}
    grid["prefetch"] = ["none", "popular", "gate"]
    tables = {"traces": "a.trace", "objective": "p99", "regret": 0, "bounds": False, "grid": grid}
    for baseline in ("lru", "random"):
        study = study_from_dict(tables | {"baseline": baseline}, folder=folder)
        (setting,) = run_study(study, tmp_path / "out", Threads(1))["settings"]
        first = setting["comparisons"][0]
        assert first["second"].startswith(f"{baseline}, 2/layer") or setting["winner"].startswith(f"{baseline},")
        rows = {
            row["plan"].removesuffix(", hqq-2bit"): row
            for row in pl.read_parquet(tmp_path / "out" / "results.parquet").to_dicts()
        }
        for found in setting["comparisons"]:
            ours, theirs = (sum(rows[found[name]]["request_p99_ns"]) for name in ("first", "second"))
            assert found["effect"] == pytest.approx((theirs - ours) / max(ours, theirs))


def test_a_plan_that_one_trace_refuses_does_not_win(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    make_trace(tmp_path / "plain.trace", random_experts(rng, 40, layers=3), num_experts=8, request=np.arange(40) % 8)
    grid = {"capacity": "2/layer", "prefetch": ["none", "gate"], "hardware": "t4", "model_shape": "mixtral-8x7b"}
    tables = {"traces": [str(folder / "a.trace"), str(tmp_path / "plain.trace")], "regret": 0, "grid": grid}
    grid["weights"] = "hqq-2bit"
    summary = run_study(study_from_dict(tables), tmp_path / "out", Threads(1))
    assert summary["failed"] == 1
    assert summary["settings"][0]["contestants"] == 1 and "gate" not in summary["settings"][0]["winner"]


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
    assert summary["settings"][0]["contestants"] == 2


def test_a_known_answer_gets_its_verdict(folder: Path, tmp_path: Path) -> None:
    """A copy of LRU is LRU on every request; half the cache is worse on every request: said so, in these words."""
    rng = np.random.default_rng(8)
    tokens, requests = 600, 12
    make_trace(
        tmp_path / "t.trace",
        random_experts(rng, tokens, layers=3),
        num_experts=8,
        request=np.arange(tokens) * requests // tokens,
        phase=1,
    )
    (tmp_path / "copy.py").write_text((ROOT / "policies" / "eviction" / "lru.py").read_text())
    grid = {"capacity": ["3/layer", "6/layer"], "eviction": ["lru", "./copy.py:Lru"], "hardware": "t4"}
    grid |= {"model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
    tables = {"traces": "t.trace", "regret": 0, "bounds": False, "grid": grid}
    summary = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1))
    (setting,) = summary["settings"]
    # Of equals the first of the file.
    assert setting["winner"] == "lru, 6/layer, hqq-2bit"
    same, dominated = (
        next(found for found in setting["comparisons"] if found["second"] == name)
        for name in (f"{tmp_path}/copy.py:Lru, 6/layer", "lru, 3/layer")
    )
    copy = f"{tmp_path}/copy.py:Lru, 6/layer"
    assert same["verdict"] == f"no difference: lru, 6/layer and {copy} cost the same on every request"
    assert (same["outcome"], same["effect"], same["wins"]) == ("identical", 0.0, 0)
    assert dominated["verdict"].startswith("lru, 6/layer beats lru, 3/layer by ") and dominated["low"] > 0
    assert (dominated["outcome"], dominated["wins"], dominated["requests"]) == ("better", 12, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"capacity": "4/layer", "evictoin": "lru"}}, "grid has no key 'evictoin'; did you mean 'eviction'?"),
        ({"objectve": "p99"}, "unknown field `objectve`; did you mean 'objective'?"),
        ({"objective": "speed"}, "objective"),
        ({"objective": "p99"}, "about time: give grid.hardware"),
        ({"grid": {"eviction": "lru"}}, "grid.capacity says how many"),
        ({"grid": {"capacity": "many"}}, "capacity 'many' is not understood"),
        ({"grid": {"capacity": 4}}, "give text, in quotes"),
        ({"grid": {"capacity": "4/layer", "eviction": "lruu"}}, "unknown eviction policy 'lruu'; did you mean 'lru'?"),
        ({"grid": {"capacity": "4/layer", "hardware": "rtx306"}}, "did you mean 'rtx3060'?"),
        ({"grid": {"capacity": "4/layer", "prefetch": {"predictor": "gate", "distanc": 1}}}, "no parameter 'distanc'"),
        ({"grid": {"capacity": "4/layer", "prefetch": {"policy": "gate"}}}, "lacks predictor"),
        ({"grid": {"capacity": "4/layer", "batch": 0}}, "whole numbers from 1"),
        ({"max_device_bytes": "4/layer"}, 'give bytes, such as "12GiB"'),
        ({"baseline": "lfu"}, "not in grid.eviction"),
        ({"statistics": {"level": 2}}, "statistics.level"),
        ({"statistics": {"seed": -1}}, "statistics.seed = -1"),
        ({"grid": {"capacity": "4/layer", "eviction": []}}, "grid.eviction is empty"),
        ({"grid": {"capacity": "4/layer", "eviction": {"policy": "lru-k", "k": []}}}, "grid.eviction: k is empty"),
        ({"grid": {"capacity": "4/layer", "eviction": "a\0b.py:Mine"}}, "holds a null byte"),
        ({"grid": {"capacity": "4/layer", "hardware": ["t4", "./t4.toml"]}}, "two of grid.hardware are named 't4'"),
        (
            {"grid": {"capacity": "4/layer", "model_shape": ["mixtral-8x7b", "./mixtral.toml"]}},
            "two of grid.model_shape are named 'mixtral-8x7b'",
        ),
        ({"traces": []}, "traces is empty"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    tables = {"traces": "a.trace", "grid": {"capacity": "4/layer"}} | change
    for profile, copy in (("hardware/profiles/t4", "t4"), ("shapes/models/mixtral-8x7b", "mixtral")):
        shutil.copy(ROOT / "engine" / f"{profile}.toml", folder / f"{copy}.toml")
    with pytest.raises(TracekitError) as error:
        run_study(study_from_dict(tables, "study s.toml", folder), tmp_path / "out", Threads(1))
    assert message in str(error.value)
    assert isinstance(error.value, StudyError | PlanError | PolicyError | TracekitError)


def test_a_huge_grid_is_refused_before_it_is_made() -> None:
    many = list(range(1, 3000))
    grid = {"capacity": "4/layer", "eviction": {"policy": "lru-k", "k": many}}
    grid["prefetch"] = {"predictor": "gate", "count": many, "staging": many}
    start = time.monotonic()
    with pytest.raises(StudyError, match=f"the grid has {2999**3} cells, more than 1000000"):
        study_from_dict({"traces": "a.trace", "grid": grid})
    assert time.monotonic() - start < 5


def test_a_folder_of_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="is no study's folder"):
        run_study(load_study(folder / "study.toml"), tmp_path, Threads(1))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_impossible_plans_are_reported_and_hold_nothing_up(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "some.toml").write_text(
        'traces = "a.trace"\n[grid]\ncapacity = ["2/layer", "99/layer"]\n'
        'prefetch = ["none", {predictor = "gate", distance = 2}]\n'
    )
    assert cli(["study", str(folder / "some.toml"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "warning: 3 of 4 cells could not be replayed" in said.err
    assert "has only 8 experts" in said.err and "lookahead logits at distance 2" in said.err
    rows = pl.read_parquet(tmp_path / "out" / "results.parquet")
    assert rows["error"].null_count() == 1 and rows["hits"].null_count() == 3
    (folder / "none.toml").write_text('traces = "a.trace"\n[grid]\ncapacity = "99/layer"\n')
    assert cli(["study", str(folder / "none.toml"), "--output", str(tmp_path / "none")]) == 1


def test_a_dry_run_counts_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert cli(["study", str(folder / "study.toml"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["traces"], found["plans"], found["machines"]) == (2, 80, 2)
    assert (found["cells"], found["passes"]) == (320, 80)
    assert found["seconds"] > 0
    assert sorted(path.name for path in folder.iterdir()) == before


def test_killed_again_and_again_it_ends_the_same(finished: Path, folder: Path, tmp_path: Path) -> None:
    """kill -9 at various moments, then to the end: the same bytes as without."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from experiments.cli.main import main; main()", "study"]
    command += [str(folder / "study.toml"), "--output", str(out), "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = 0
    for pieces in (1, 8, 20, 45, 70):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            deadline = time.monotonic() + 60
            while running.poll() is None and len(list(out.glob("cells/*.parquet"))) < pieces:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if running.poll() is None:
                running.send_signal(signal.SIGKILL)
                killed += 1
    assert killed >= 3
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
    from experiments.study.store import Store

    with Store(tmp_path / "out"), pytest.raises(TracekitError, match="written by another process"):
        run_study(load_study(folder / "study.toml"), tmp_path / "out", Threads(1))


def test_the_page_lists_every_column() -> None:
    page = (ROOT / "docs" / "studies.md").read_text()
    for name, _, words in COLUMNS:
        assert f"| `{name}` | {words} |" in page, name
