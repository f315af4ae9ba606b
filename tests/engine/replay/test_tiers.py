"""Replays of experts in two formats: counts, bytes and memory of each tier, events, and what there is none of."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.plan.plan import Plan
from engine.replay.event_log import SCHEMA, EventLog
from engine.replay.replay import replay
from engine.replay.result import Result
from experiments.cli.main import run
from tests.helpers.traces import make_trace, random_experts
from tracekit.errors import PlanError
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

EXPERT = 3 * 4096 * 14336  # parameters of one of Mixtral-8x7B
HIGH, LOW = EXPERT * 9 // 16, EXPERT * 5 // 16  # bytes: 4.5 and 2.5 bits
BOTH: dict[str, Any] = {"high": "hqq-4bit", "low": "hqq-2bit-g64", "capacity": "2/layer"}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """A prompt of ten tokens, 70 more; 32 layers, top-2 of 8, with gate weights."""
    rng = np.random.default_rng(2)
    experts = random_experts(rng, tokens=80, layers=32, experts=8, top_k=2)
    weights = np.sort(rng.random((80, 32, 2)), axis=2)[:, :, ::-1]
    step = np.maximum(np.arange(80) - 9, 0)
    phase = np.where(step == 0, PREFILL, DECODE)
    return make_trace(tmp_path / "t.trace", experts, num_experts=8, step=step, phase=phase, weights=weights)


def replayed(trace: Trace, plan: Plan, **more: Any) -> Result:
    return replay(trace, plan, "h100", model_shape="mixtral-8x7b", **more)


def test_tiers_add_up_to_the_whole(trace: Trace) -> None:
    plan = Plan("3/layer", precision=BOTH | {"threshold": 0.4}, prefetch={"predictor": "markov", "count": 4})
    found = replayed(trace, plan, warm_up=20)
    assert found.precision is not None
    high, low = found.precision["high"], found.precision["low"]
    assert high.lookups + low.lookups == found.lookups and high.hits + low.hits == found.hits
    assert 0 < low.lookups < high.lookups and low.prefetches == 0 < high.prefetches == found.prefetches
    for tier, size in ((high, HIGH), (low, LOW)):
        assert tier.bytes_loaded == (tier.lookups - tier.hits + tier.prefetches) * size
    assert found.bytes_loaded == (high.bytes_loaded or 0) + (low.bytes_loaded or 0)
    assert found.bounds is None and found.regret is None
    assert any("first-order estimate" in text for text in found.warnings)


def test_memory_holds_both_copies(trace: Trace) -> None:
    found = replayed(trace, Plan("3/layer", precision=BOTH))
    alone = replayed(trace, Plan("3/layer", weights="hqq-4bit"), bounds=False)
    assert found.estimates is not None and alone.estimates is not None
    parts = found.estimates.device_parts
    assert parts["slots"] == 32 * (3 * HIGH + 2 * LOW) and parts["staging"] == 4 * (HIGH + LOW)
    assert {**parts, "slots": 0, "staging": 0} == {**alone.estimates.device_parts, "slots": 0, "staging": 0}
    assert found.estimates.host_bytes == 32 * 8 * (HIGH + LOW)


def test_both_ends_take_as_long_as_the_format_alone(trace: Trace) -> None:
    for threshold, capacity, word in ((0.0, "3/layer", "hqq-4bit"), (2.0, "2/layer", "hqq-2bit-g64")):
        tiered = replayed(trace, Plan("3/layer", precision=BOTH | {"threshold": threshold}))
        alone = replayed(trace, Plan(capacity, weights=word), bounds=False)
        assert tiered.time == alone.time and tiered.bytes_loaded == alone.bytes_loaded
        assert (tiered.hits, tiered.loads, tiered.bypasses) == (alone.hits, alone.loads, alone.bypasses)


def test_events_name_the_tier(trace: Trace, tmp_path: Path) -> None:
    plan = Plan("3/layer", precision=BOTH | {"threshold": 0.4})
    with EventLog(tmp_path / "e.parquet", trace, plan) as log:
        found = replayed(trace, plan, on_events=log.append)
    rows = pl.read_parquet(tmp_path / "e.parquet")
    assert rows.columns == [*SCHEMA, "tier"] and found.precision is not None
    assert int(rows["layer"].max()) == 31  # type: ignore[call-overload]
    demanded = rows.filter(pl.col("kind").is_in(["hit", "load", "bypass"]))
    for tier, counts in found.precision.items():
        assert demanded.filter(pl.col("tier") == tier).height == counts.lookups
    weights = trace.weights
    assert weights is not None
    share = weights[:, :, 1].astype(float) / weights.astype(float).sum(axis=2)  # of the lighter of two choices
    light = int((share[10:] < 0.4).sum())
    decode = demanded.filter((pl.col("step") > 0) & (pl.col("tier") == "low"))
    assert 0 < decode.height <= light


def test_better_machines_and_timelines_know_both_copies(
    trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text(Plan("3/layer", precision=BOTH | {"threshold": 0.4}).to_toml())
    arguments = ["replay", str(trace.path), "--plan", str(plan), "--hardware", "h100", "--model-shape", "mixtral-8x7b"]
    assert run([*arguments, "--sensitivities", "--timeline", str(tmp_path / "t.json")]) == 0
    assert "served by low copies" in capsys.readouterr().out
    text = (tmp_path / "t.json").read_text()
    assert '"tier":"low"' in text and '"expert_layer":32' not in text
    for wrong, complaint in (("--bounds", "there are no bounds"), ("--against-recorded", "precision tiers")):
        assert run([*arguments, wrong]) == 2
        assert complaint in capsys.readouterr().err


def test_what_is_not_there_for_two_copies_is_refused(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there are no bounds"):
        replayed(trace, Plan("3/layer", precision=BOTH), bounds=True)
    bare = make_trace(tmp_path / "bare.trace", trace.experts, num_experts=8)
    with pytest.raises(PlanError, match=r"no gate weights, which precision\.rule 'miss-below' reads"):
        replay(bare, Plan("3/layer", precision=BOTH | {"high": "bf16", "low": "fp16"}), model_shape="mixtral-8x7b")
