"""What `tracekit replay` writes beside its result: events, the steps' table and the timeline, which agree with it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.replay.chrome_trace import COMPUTE, VISITS
from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import prompted_trace

HARDWARE = ["--hardware", "rtx3060", "--capacity", "3/layer"]
CAUSES = ["dense", "experts", "dequantisation", "overhead", "demand", "late_prefetch", "link_busy", "disk", "cpu"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A prompt of 6 tokens and 30 decode steps, numbered from 100; 3 layers, top-2 of 8, with lookahead."""
    return prompted_trace(tmp_path / "t.trace").path


def replayed(call: Call, *arguments: object) -> dict[str, Any]:
    code, out, err = call("replay", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_counts_of_the_log_are_the_replays(call: Call, trace: Path, tmp_path: Path) -> None:
    found = replayed(call, trace, "--capacity", "2/layer", "--events", tmp_path / "e.parquet")
    kinds = dict(pl.read_parquet(tmp_path / "e.parquet")["kind"].value_counts().iter_rows())
    assert kinds["hit"] == found["hits"] > 0
    assert kinds["bypass"] == found["bypasses"] > 0
    assert kinds["load"] + kinds["bypass"] == found["misses"]


@pytest.mark.parametrize("prefetch", ["none", "gate"])
def test_steps_add_up_to_the_result(call: Call, trace: Path, tmp_path: Path, prefetch: str) -> None:
    path = tmp_path / "steps.parquet"
    result = replayed(call, trace, *HARDWARE, "--prefetch", prefetch, "--steps", path)
    rows = pl.read_parquet(path)
    assert rows["step"].to_list() == list(range(100, 131)) and rows["tokens"].to_list() == [6] + [1] * 30
    assert rows["phase"].to_list() == ["prefill"] + ["decode"] * 30
    assert rows["hit"].sum() == result["hits_by"]["cache"] and rows["load"].sum() == result["loads"]
    assert rows["prefetch"].sum() == result["prefetches"]
    assert rows.select(pl.sum_horizontal([f"{cause}_ns" for cause in CAUSES])).to_series().equals(rows["total_ns"])
    assert rows["total_ns"].sum() / 1e9 == pytest.approx(result["time"]["total_s"])
    assert (rows["begin_ns"] + rows["total_ns"]).to_list()[:-1] == rows["begin_ns"].to_list()[1:]


def test_steps_without_hardware_are_counts(call: Call, trace: Path, tmp_path: Path) -> None:
    replayed(call, trace, "--capacity", "3/layer", "--steps", tmp_path / "s.parquet")
    assert "total_ns" not in pl.read_parquet(tmp_path / "s.parquet").columns


def test_the_timeline_is_of_the_steps_asked_for(call: Call, trace: Path, tmp_path: Path) -> None:
    """What is computed and waited for in the window is what the steps' table says."""
    path, table = tmp_path / "t.json", tmp_path / "s.parquet"
    window = ["--timeline", path, "--timeline-steps", "5:9", "--steps", table]
    replayed(call, trace, *HARDWARE, "--prefetch", "gate", *window)
    read = json.loads(path.read_text())
    slices = [event for event in read["traceEvents"] if event["ph"] == "X"]
    rows = pl.read_parquet(table)[5:9]
    visits = [event for event in slices if event["tid"] == VISITS]
    assert {event["args"]["step"] for event in visits} == set(rows["step"].to_list()) and len(visits) == 12
    computing = [event for event in slices if event["tid"] == COMPUTE]
    assert sum(event["dur"] for event in computing) == pytest.approx(rows["total_ns"].sum() / 1000)
    waits = [event["dur"] for event in computing if event["name"] == "wait: demand"]
    assert sum(waits) == pytest.approx(rows["demand_ns"].sum() / 1000)
    assert read["otherData"]["hardware"] == "rtx3060"
    assert any(event["ph"] == "s" for event in read["traceEvents"])


def test_by_default_the_timeline_is_of_four_steps_in_the_middle(call: Call, trace: Path, tmp_path: Path) -> None:
    replayed(call, trace, *HARDWARE, "--timeline", tmp_path / "t.json.gz")
    assert (tmp_path / "t.json.gz").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timeline", "t.json"], ["--hardware"]),
        ([*HARDWARE, "--timeline-steps", "0:3"], ["--timeline"]),
        ([*HARDWARE, "--timeline", "t.json", "--timeline-steps", "3"], ["A:B", "31 steps"]),
        ([*HARDWARE, "--timeline", "t.json", "--timeline-steps", "40:50"], ["A:B", "31 steps"]),
        ([*HARDWARE, "--timeline", "none/t.json"], ["cannot write", "t.json", "no directory"]),
        ([*HARDWARE, "--steps", "none/s.parquet"], ["cannot write", "s.parquet", "no directory"]),
        (["--events", "none/e.parquet"], ["none/e.parquet"]),
        (["--events", "e.parquet", "--capacity", "9/layer"], ["9/layer"]),
    ],
)
def test_what_is_wrong_is_one_line(
    call: Call, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(*call("replay", trace, "--capacity", "3/layer", *arguments), *words)
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob("*.parquet"))


def test_a_global_cache_below_the_token_cycle_is_warned_of(call: Call, trace: Path) -> None:
    below = replayed(call, trace, "--capacity", "4")
    assert below["phases"]["decode"]["hits"] == 0 and any("token cycle" in line for line in below["warnings"])
    assert not any("token cycle" in line for line in replayed(call, trace, "--capacity", "7")["warnings"])
    assert not any("token cycle" in line for line in replayed(call, trace, "--capacity", "1/layer")["warnings"])
    in_bytes = replayed(call, trace, "--capacity", "12000000B")
    assert any("token cycle" in line for line in in_bytes["warnings"])


def test_a_link_that_is_always_busy_is_warned_of(call: Call, trace: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "engine/hardware/profiles/rtx3060.toml").read_text()
    slow = tmp_path / "slow.toml"
    slow.write_text(text.replace("12_600_000_000", "100_000_000"))
    arguments = [trace, "--capacity", "3/layer", "--prefetch", "gate", "--hardware", slow]
    assert any("link is busy" in line for line in replayed(call, *arguments)["warnings"])


def test_counts_are_timed_without_a_trace(call: Call, tmp_path: Path) -> None:
    cells, plan = tmp_path / "cells.csv", tmp_path / "fused.toml"
    cells.write_text("name,steps,tokens,distinct,demand_loads,ms_per_step\nLRU,50,19.1,6.27,5000,700\n")
    plan.write_text('cache.capacity = "0"\ncompute.experts = "fused"\n')
    machine = ["--counts", cells, "--hardware", "h100", "--model-shape", "mixtral-8x7b"]
    each, fused = replayed(call, *machine), replayed(call, *machine, "--plan", plan)
    assert (each["spread"], each["compute_experts"], fused["compute_experts"]) == ("even", "each", "fused")
    assert each["cells"][0]["ms_per_step"] < fused["cells"][0]["ms_per_step"]
    assert each["cells"][0]["error"] == pytest.approx(each["cells"][0]["ms_per_step"] / 700 - 1)
    code, out, _ = call("replay", *machine, "--spread", "random", "--seed", 3)
    assert code == 0 and "LRU" in out and "misses random" in out
    assert_one_line(*call("replay", "--counts", cells), "--model-shape")
    assert_one_line(*call("replay", *machine, "--capacity", "4/layer"), "leave out --capacity")
    assert_one_line(*call("replay", *machine, "--spread", "odd"), "even or random")
    assert_one_line(*call("replay", *machine, "--seed", 3), "--spread random")
    assert_one_line(*call("replay", "--capacity", "4/layer"), "--counts")
