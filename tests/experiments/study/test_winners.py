"""Who wins a study, what it is compared with, and what each request cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.hardware import load_hardware
from engine.plan.plan import load_plan, plan_from_dict
from experiments.statistics.request_shares import RequestShares
from experiments.study import Threads, run_study, study_from_dict
from experiments.study.cell_results import measure
from experiments.study.cells import cells_of, groups
from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace

ROOT = Path(__file__).resolve().parents[3]


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
    grid = {"capacity": ["2/layer", "7/layer"], "eviction": ["lru", "lfu"], "hardware": "h100"}
    grid |= {"model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
    tables = {"traces": "a.trace", "regret": 0, "grid": grid}
    (group, other, *_) = groups(cells_of(study_from_dict(tables, folder=folder)))[::2]
    sizes = [measure(Threads(1).shared, cells)[0]["device_bytes"] for cells in (group, other)]
    middle = sum(sizes) // 2
    assert sizes[0] < middle < sizes[1]
    for number, (objective, column) in enumerate(
        [("p99", "tpot_p99_ms"), ("bytes", "decode_bytes_loaded"), ("tokens_per_second", "total_s")]
    ):
        for limit in (None, middle):
            out = tmp_path / f"{number}{limit is None}"
            given = tables | {"objective": objective} | ({} if limit is None else {"max_device_bytes": limit})
            (setting,) = run_study(study_from_dict(given, folder=folder), out, Threads(1)).settings
            rows = pl.read_parquet(out / "results.parquet")
            if limit is not None:
                rows = rows.filter(pl.col("device_bytes") <= limit)
            assert setting.winner in set(rows.filter(pl.col(column) == pl.col(column).min())["plan"])
            assert setting.too_large == (0 if limit is None else 2)
    none = study_from_dict(tables | {"max_device_bytes": "1MB"}, folder=folder)
    summary = run_study(none, tmp_path / "last", Threads(1))
    (setting,) = summary.settings
    assert setting.statement == "no winner: no plan fits into 976.6 KiB"
    assert (setting.contestants, setting.too_large, setting.value) == (0, 4, None)
    assert setting.notes == ["4 plans left out, too large for 976.6 KiB"]
    assert any("decode tokens" in warning for warning in summary.warnings), "what is said of the trace stands"
    assert not (tmp_path / "last" / "winner.plan.toml").exists()


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_what_each_request_cost(share: float, folder: Path) -> None:
    """Against plain loops over the tokens; of both objectives that compare times."""
    trace = Trace.open(folder / "a.trace")
    requests = RequestShares.of(trace)
    of_step = np.random.default_rng(2).integers(1, 10**9, len(requests.steps.phase))
    costs: dict[int, list[float]] = {}
    parts: dict[int, float] = {}
    for step, request, phase in zip(trace.step, trace.request, trace.phase, strict=True):
        if phase == 1:
            costs.setdefault(int(request), []).append(float(of_step[step]))
            parts[int(request)] = parts.get(int(request), 0) + of_step[step] / (trace.step == step).sum()
    assert requests.requests.tolist() == sorted(costs)
    of_each = [np.percentile(costs[name], 100 * share) * 4 for name in sorted(costs)]
    assert requests.percentile(of_step, share, 4.0).tolist() == pytest.approx(of_each, abs=1)
    assert requests.of_each(of_step, 4.0).tolist() == pytest.approx([parts[name] * 4 for name in sorted(parts)], abs=1)


def test_what_the_winner_is_compared_with(folder: Path, tmp_path: Path) -> None:
    """The baseline, however slow; costs as the objective asks; no plan that one of the traces refuses."""
    grid: dict[str, Any] = {"capacity": "2/layer", "hardware": "t4", "model_shape": "mixtral-8x7b"}
    policies = ["lru", "lfu", "lfu-perfect", "lfu-aging", "fifo", *({"policy": "lru-k", "k": k} for k in (2, 3, 4))]
    grid |= {"weights": "hqq-2bit", "eviction": [*policies, "random"]}
    grid["prefetch"] = ["none", "popular", "gate"]
    tables = {"traces": "a.trace", "objective": "p99", "regret": 0, "bounds": False, "grid": grid}
    for baseline in ("lru", "random"):
        study = study_from_dict(tables | {"baseline": baseline}, folder=folder)
        (setting,) = run_study(study, tmp_path / "out", Threads(1)).settings
        first = setting.comparisons[0]
        assert first.second.startswith(f"{baseline}, 2/layer") or setting.winner.startswith(f"{baseline},")
        rows = {
            row["plan"].removesuffix(", hqq-2bit"): row
            for row in pl.read_parquet(tmp_path / "out" / "results.parquet").to_dicts()
        }
        for found in setting.comparisons:
            ours, theirs = (sum(rows[getattr(found, name)]["request_p99_ns"]) for name in ("first", "second"))
            assert found.effect == pytest.approx((theirs - ours) / max(ours, theirs))


def test_a_plan_that_one_trace_refuses_does_not_win(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    make_trace(tmp_path / "plain.trace", random_experts(rng, 40, layers=3), num_experts=8, request=np.arange(40) % 8)
    grid = {"capacity": "2/layer", "prefetch": ["none", "gate"], "hardware": "t4", "model_shape": "mixtral-8x7b"}
    tables = {"traces": [str(folder / "a.trace"), str(tmp_path / "plain.trace")], "regret": 0, "grid": grid}
    grid["weights"] = "hqq-2bit"
    summary = run_study(study_from_dict(tables), tmp_path / "out", Threads(1))
    assert summary.failed == 1
    assert summary.settings[0].contestants == 1 and "gate" not in summary.settings[0].winner


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
    grid = {"capacity": ["3/layer", "6/layer"], "eviction": ["lru", "./copy.py:Lru"], "hardware": "rtx4090"}
    grid |= {"model_shape": "mixtral-8x7b", "weights": "hqq-2bit"}
    tables = {"traces": "t.trace", "regret": 0, "bounds": False, "grid": grid}
    (setting,) = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1)).settings
    # Capacities are no rivals of policies, unless they are asked for.
    assert all(", 6/layer" in found.second for found in setting.comparisons)
    tables["across_capacities"] = True
    (setting,) = run_study(study_from_dict(tables, folder=tmp_path), tmp_path / "out", Threads(1)).settings
    # Of equals the first of the file.
    assert setting.winner == "lru, 6/layer, hqq-2bit"
    same, dominated = (
        next(found for found in setting.comparisons if found.second == name)
        for name in (f"{tmp_path}/copy.py:Lru, 6/layer", "lru, 3/layer")
    )
    copy = f"{tmp_path}/copy.py:Lru, 6/layer"
    assert same.verdict == f"no difference: lru, 6/layer and {copy} cost the same on every request"
    assert (same.outcome, same.effect, same.wins) == ("identical", 0.0, 0)
    assert dominated.verdict.startswith("lru, 6/layer beats lru, 3/layer by ") and dominated.low > 0
    assert (dominated.outcome, dominated.wins, dominated.requests) == ("better", 12, 12)
