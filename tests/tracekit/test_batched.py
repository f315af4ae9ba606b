"""A batched view of a trace is what a trace with these rows would be, and says what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.plan.plan import plan_from_dict
from engine.replay.event_log import EventLog
from engine.replay.replay import replay
from tests.helpers.traces import make_trace, random_experts
from tracekit.batched import batched
from tracekit.errors import PlanError
from tracekit.rows import DECODE, PREFILL
from tracekit.trace import Trace

REQUESTS, PROMPT, ANSWER, LAYERS, EXPERTS, TOP_K = 5, 4, 9, 3, 8, 2


def recording() -> dict[str, Any]:
    """Five requests one after another, each a prompt of four tokens in one step and nine decode steps."""
    rng = np.random.default_rng(5)
    tokens = REQUESTS * (PROMPT + ANSWER)
    inside = np.arange(tokens) % (PROMPT + ANSWER)
    phase = np.where(inside < PROMPT, PREFILL, DECODE)
    return {
        "experts": random_experts(rng, tokens, LAYERS, EXPERTS, TOP_K),
        "step": np.cumsum((inside == 0) | (phase == DECODE)) - 1,
        "request": np.arange(tokens) // (PROMPT + ANSWER),
        "position": inside,
        "phase": phase,
        "token_id": rng.integers(0, 99, tokens),
        "weights": rng.random((tokens, LAYERS, TOP_K)).astype(np.float16),
        "lookahead": {1: rng.normal(size=(tokens, LAYERS - 1, EXPERTS)).astype(np.float16)},
        "logits": rng.normal(size=(tokens, LAYERS, EXPERTS)).astype(np.float16),
    }


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return make_trace(tmp_path / "t.trace", num_experts=EXPERTS, **recording())


def rewritten(view: Trace, path: Path) -> Trace:
    """A trace on disk with the rows of the view."""
    columns = {name: getattr(view, name) for name in ("step", "request", "position", "phase", "token_id", "experts")}
    ahead = {distance: view.lookahead(distance) for distance in view.lookahead_distances}
    return make_trace(path, num_experts=EXPERTS, **columns, weights=view.weights, logits=view.logits, lookahead=ahead)


PLANS: list[dict[str, Any]] = [
    {"cache": {"capacity": "3/layer"}},
    {"cache": {"capacity": "30%"}, "eviction": {"policy": "score"}},
    {"cache": {"capacity": "2/layer"}, "eviction": {"policy": "belady"}},
    {"cache": {"capacity": "3/layer"}, "prefetch": {"predictor": "gate"}},
]


@pytest.mark.parametrize("plan", PLANS, ids=["lru", "score", "belady", "gate"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_replays_as_the_same_rows_on_disk(trace: Trace, tmp_path: Path, batch: int, plan: dict[str, Any]) -> None:
    view = batched(trace, batch, arrival_rate=0.4, seed=1)
    hardware = "rtx3060"
    found = replay(view, plan_from_dict(plan), hardware, model_shape="mixtral-8x7b")
    expected = replay(rewritten(view, tmp_path / "w.trace"), plan_from_dict(plan), hardware, model_shape="mixtral-8x7b")
    assert (found.hits, found.misses, found.phases) == (expected.hits, expected.misses, expected.phases)
    assert found.time == expected.time and found.bounds == expected.bounds
    assert found.lookups > 0


def test_batching_shares_loads_between_requests(trace: Trace) -> None:
    """The same tokens in fewer decode steps: fewer lookups, since a step looks every expert up once."""
    plan = plan_from_dict(PLANS[0])
    alone, together = replay(trace, plan), replay(batched(trace, REQUESTS), plan)
    assert together.tokens == alone.tokens
    assert together.phases.decode.lookups < alone.phases.decode.lookups
    assert together.phases.prefill.lookups == alone.phases.prefill.lookups


def test_results_say_that_it_is_an_approximation(trace: Trace) -> None:
    plan = plan_from_dict(PLANS[0])
    result = replay(batched(trace, 4, arrival_rate=2.0, seed=7), plan)
    assert "batched 4: an approximation: requests' routing is taken as independent of their batch" in result.warnings
    told = result.provenance["batching"]
    assert (told["batch"], told["arrival_rate"], told["seed"], told["requests"]) == (4, 2.0, 7, REQUESTS)
    assert 1 < told["requests_per_decode_step"] <= 4
    assert told["decode_steps"] * told["requests_per_decode_step"] == pytest.approx(REQUESTS * ANSWER)
    plain = replay(trace, plan)
    assert plain.provenance["batching"] is None
    assert not any("batched" in warning for warning in plain.warnings)
    assert result.provenance["trace_digest"] != plain.provenance["trace_digest"]


def test_the_digest_names_what_is_replayed(trace: Trace) -> None:
    assert batched(trace, 3).digest == batched(trace, 3).digest != batched(trace, 2).digest


def test_nothing_to_batch_is_said(tmp_path: Path) -> None:
    experts = random_experts(np.random.default_rng(0), 9, LAYERS, EXPERTS, TOP_K)
    view = batched(make_trace(tmp_path / "one.trace", experts, num_experts=EXPERTS), 8)
    assert any("1 request: there is nothing to batch" in warning for warning in view.batching.warnings)
    assert view.weights is None and view.lookahead(1) is None


def test_its_tables_are_batched_too(trace: Trace, tmp_path: Path) -> None:
    view = batched(trace, 3)
    table = view.scan().collect()
    assert table["step"].to_list() == view.step.tolist()
    assert table["token_id"].to_list() == view.token_id.tolist()
    with EventLog(tmp_path / "e.parquet", view) as log:
        replay(view, plan_from_dict(PLANS[0]), on_events=log.append)
    assert set(pl.read_parquet(tmp_path / "e.parquet")["step"].to_list()) == set(view.step.tolist())


def test_impossible_batches_are_refused(trace: Trace) -> None:
    with pytest.raises(PlanError, match="batch of 0"):
        batched(trace, 0)
    with pytest.raises(PlanError, match="arrival rate"):
        batched(trace, 2, arrival_rate=0)
