"""The researcher's question: each policy against the baseline at each capacity, judged as one family with all else."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.plan.plan import plan_from_dict
from engine.replay.replay import replay
from experiments.cli.main import run as cli
from experiments.statistics.comparison import holm
from experiments.study import FinishedStudy, study
from experiments.study.once import repeated_requests
from tests.helpers.traces import make_trace, random_experts
from tracekit.edit import Selection, slice_trace
from tracekit.trace import Trace

TOKENS, REQUESTS = 600, 30
MINE = """
from policies.eviction.lru import Lru


class Mine(Lru):
    pass
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(8)
    make_trace(
        folder / "t.trace",
        random_experts(rng, TOKENS, layers=4),
        num_experts=8,
        request=np.arange(TOKENS) * REQUESTS // TOKENS,
        phase=1,
        token_id=np.arange(TOKENS, dtype=np.int32),
    )
    (folder / "mine.py").write_text(MINE)
    return folder


def run(place: Path, **tables: Any) -> FinishedStudy:
    grid = {"capacity": ["2/layer", "4/layer", "6/layer"], "eviction": [f"{place}/mine.py:Mine", "lfu", "belady"]}
    given = {"traces": str(place / "t.trace"), "baseline": "lru", "objective": "hit_ratio", "grid": grid}
    return study(given | tables)


def test_every_policy_meets_the_baseline_at_every_capacity(place: Path) -> None:
    """LRU is not in the grid, has no machine, and is counted in one pass: none of it leaves it out."""
    found = run(place)
    rows = found.effects
    assert rows["baseline"].unique().to_list() == ["lru"] and set(rows["quantity"]) == {"hit ratio"}
    assert sorted(rows["capacity"]) == sorted(["2/layer", "4/layer", "6/layer"] * 3)
    trace = Trace.open(place / "t.trace")
    for row in rows.iter_rows(named=True):
        plans = [{"cache": {"capacity": row["capacity"]}, "eviction": {"policy": p}} for p in (row["policy"], "lru")]
        ours, theirs = (replay(trace, plan_from_dict(plan), bounds=False).phases.decode.hit_ratio for plan in plans)
        assert (row["value"], row["baseline_value"]) == pytest.approx((ours, theirs))
        # Requests of one length: what their sums differ by is what the ratios differ by.
        assert row["effect"] == pytest.approx(ours - theirs, abs=1e-12)
        assert row["requests"] == REQUESTS and row["low"] <= row["effect"] <= row["high"]
    same = rows.filter(pl.col("policy").str.ends_with("Mine"))
    assert set(same["outcome"]) == {"identical"}
    ahead = rows.filter(pl.col("policy") == "belady")
    assert set(ahead["outcome"]) == {"bound"} and ahead["corrected"].null_count() == 3
    assert (ahead["effect"] >= 0).all() and ahead["effect"].sum() > 0
    answers = found.summary.settings[0].answers
    assert answers[0] == f"{place}/mine.py:Mine against lru: the same at 2/layer, 4/layer, 6/layer"
    assert len(answers) == 2 and answers[1].startswith("lfu against lru: ")


def test_all_that_is_said_is_one_family(place: Path) -> None:
    """Probabilities are corrected over effects, the winner's rivals and the ranking together; the same pair says the
    same wherever it stands."""
    found = run(place, across_capacities=True)
    (setting,) = found.summary.settings
    effects = found.effects.filter(~pl.col("needs_future"))
    pairs = {frozenset((row["plan"], f"lru, {row['capacity']}")): row for row in effects.iter_rows(named=True)}
    told = {frozenset((one.first, one.second)): one for one in setting.comparisons}
    both = pairs.keys() & told.keys()
    assert both
    for pair in both:
        assert told[pair].corrected == pairs[pair]["corrected"] and told[pair].p == pairs[pair]["p"]
    # Six plans are ranked, nine there are: every pair of the best six, and what else is asked of the others.
    count = int(next(note for note in setting.notes if "corrected for" in note).split(" comparisons")[0].split()[-1])
    assert count >= 15
    smallest = min(one.p for one in setting.comparisons)
    first = next(one for one in setting.comparisons if one.p == smallest)
    assert first.corrected == pytest.approx(min(1.0, holm([smallest, *[1.0] * (count - 1)])[0]))


def test_one_pass_counts_requests_as_replays_do(place: Path, tmp_path: Path) -> None:
    """LRU from the pass for all sizes against the same policy by another name, which is replayed; in batches, too."""
    rng = np.random.default_rng(2)
    make_trace(
        tmp_path / "b.trace",
        random_experts(rng, 200, layers=3),
        num_experts=8,
        step=np.arange(200) // 4,
        request=np.arange(200) % 12,
        phase=(np.arange(200) >= 40).astype(np.uint8),
    )
    grid = {"capacity": ["1/layer", "3/layer", "7"], "eviction": ["lru", f"{place}/mine.py:Mine"]}
    for trace in (place / "t.trace", tmp_path / "b.trace"):
        rows = study({"traces": str(trace), "grid": grid}).results
        for capacity in grid["capacity"]:
            one, other = rows.filter(pl.col("capacity") == capacity).iter_rows(named=True)
            for name in ("request", "request_tokens", "request_lookups", "request_misses", "request_loads"):
                assert one[name] == other[name], (capacity, name)
            assert one["request_bytes"] == pytest.approx(other["request_bytes"], abs=1)
            assert sum(one["request_misses"]) == pytest.approx(one["decode_lookups"] - one["decode_hits"], abs=12)


@pytest.mark.parametrize("objective", ["bytes", "hit_ratio"])
def test_loads_count_where_sizes_are_unknown(objective: str, place: Path) -> None:
    found = run(place, objective=objective)
    quantity = {"bytes": "bytes loaded", "hit_ratio": "hit ratio"}[objective]
    if found.results["bytes_loaded"].null_count():
        quantity = quantity.replace("bytes", "experts")
    assert set(found.effects["quantity"]) == {quantity} and found.effects["effect"].null_count() == 0
    assert not any("request by request" in note for note in found.summary.settings[0].notes)


def test_what_is_there_twice_counts_once(place: Path, tmp_path: Path) -> None:
    whole = Trace.open(place / "t.trace")
    slice_trace(whole, Selection(requests="10:30"), tmp_path / "part.trace")
    paths = [str(place / "t.trace"), str(tmp_path / "part.trace")]
    assert len(repeated_requests(paths)[paths[1]]) == 20
    alone, twice = run(place), run(place, traces=paths)
    assert set(twice.effects["requests"]) == {REQUESTS}
    assert (
        f"20 requests of {paths[1]} counted once in comparisons: another trace has the same" in twice.summary.warnings
    )
    assert len(twice.results) == 2 * len(alone.results)


def test_the_same_trace_under_two_names_is_replayed_once(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.trace"
    other.symlink_to(place / "t.trace")
    found = run(place, traces=[str(place / "t.trace"), str(other)])
    assert set(found.results["trace"]) == {str(place / "t.trace")} and set(found.effects["requests"]) == {REQUESTS}
    assert found.summary.warnings[0] == f"{other} holds the same as {place / 't.trace'}: it counts once"


def test_the_terminal_answers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text(
        f'traces = "{place}/t.trace"\nobjective = "hit_ratio"\nbaseline = "lru"\n[grid]\n'
        f'capacity = ["2/layer", "4/layer"]\neviction = ["{place}/mine.py:Mine", "belady-bypass"]\n'
    )
    assert cli(["study", str(tmp_path / "s.toml"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Against lru at the same cache size, hit ratio" in said and "knows the future" in said
    assert "mine.py:Mine against lru: the same at 2/layer, 4/layer" in said
