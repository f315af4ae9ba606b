"""A replay of a plan that alters routing: labelled, counted, logged, and beside bounds that are not its own."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.decisions.rerouted import rerouted, routing_spec
from engine.plan.plan import Plan
from engine.replay.choice_log import ChoiceLog, choices_path
from engine.replay.replay import replay
from engine.replay.setting import Setting
from tests.helpers.routing_traces import logits_trace
from tracekit.errors import PlanError
from tracekit.rows import UNUSED

SIZES = {"expert_bytes": [3_000_000] * 3, "expert_params": [1_500_000] * 3}
PRIOR = {"policy": "cache-prior", "strength": 0.6}


def test_it_says_what_it_is_and_counts(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    plain = replay(trace, Plan("5/layer"))
    found = replay(trace, Plan("5/layer", routing=PRIOR))
    assert plain.routing is None and plain.bounds is not None and plain.bounds.routing is None
    assert "routing" not in plain.provenance["plan"] and found.provenance["plan"]["routing"] == PRIOR
    assert found.routing is not None and found.routing.label == "first-order estimate"
    assert found.routing.choices == trace.experts.size and found.routing.dropped == 0
    assert 0 < found.routing.altered_weight < found.routing.altered_share < 1
    # The bounds are of what the gates chose, and this plan beats that on hits.
    assert found.bounds is not None and found.bounds.routing == "unaltered"
    assert found.bounds.hit_ratio == plain.bounds.hit_ratio < found.hit_ratio
    assert found.hit_ratio > plain.hit_ratio and found.misses < plain.misses
    assert found.to_dict()["routing"]["policy"] == "cache-prior"


def test_it_is_the_replay_of_the_altered_trace(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    plan = Plan("4/layer", routing={"policy": "drop-cold", "share": 1.0}, prefetch="gate")
    setting = Setting.of(trace.manifest, plan)
    altered = rerouted(trace, setting.spec, routing_spec(plan.routing, trace.manifest))
    given, again = replay(trace, plan, warm_up=20), replay(altered.trace, Plan("4/layer", prefetch="gate"), warm_up=20)
    for name in ("lookups", "hits", "misses", "loads", "bypasses", "prefetches"):
        assert getattr(given, name) == getattr(again, name)
    assert given.routing is not None
    uncounted = given.provenance["warm_up"]["steps"]
    assert given.routing.choices == int((trace.experts[trace.step >= uncounted] != UNUSED).sum())


def test_every_altered_choice_is_a_row(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    plan = Plan("4/layer", routing={"policy": "adaptive-k", "share": 0.7})
    path = choices_path(tmp_path / "events.parquet")
    assert path.name == "events.choices.parquet"
    with ChoiceLog(path, trace) as log:
        found = replay(trace, plan, on_choices=log.add, bounds=False)
    rows = pl.read_parquet(path)
    assert found.routing is not None and len(rows) == found.routing.altered == found.routing.dropped > 0
    assert rows["served"].null_count() == len(rows) and (rows["served_weight"] == 0).all()
    chosen = trace.experts[rows["row"], rows["layer"], rows["place"]]
    np.testing.assert_array_equal(rows["expert"], chosen)
    weights = np.asarray(trace.weights)[rows["row"], rows["layer"], rows["place"]]
    np.testing.assert_array_equal(rows["weight"], weights.astype(np.float32))
    np.testing.assert_array_equal(rows["step"], trace.step[rows["row"]])
    assert (rows["visit"].diff().drop_nulls() >= 0).all()
    assert found.routing.dropped_weight == pytest.approx(
        rows["weight"].sum() / np.asarray(trace.weights, np.float64).sum()
    )


def test_replaced_choices_name_who_serves(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace")
    plan = Plan("4/layer", routing={"policy": "substitute", "strength": 0.5})
    path = tmp_path / "c.parquet"
    with ChoiceLog(path, trace) as log:
        replay(trace, plan, on_choices=log.add, bounds=False)
    rows = pl.read_parquet(path)
    assert rows["served"].null_count() == 0 and (rows["served"] != rows["expert"]).all()
    assert (rows["served_weight"] == rows["weight"]).all()


def test_what_would_mislead_is_refused(tmp_path: Path) -> None:
    trace = logits_trace(tmp_path / "t.trace", **SIZES)
    with pytest.raises(PlanError, match="sensitivities are of recorded routing"):
        replay(trace, Plan("4/layer", routing=PRIOR), "rtx3060", sensitivities=True)
    timed = replay(trace, Plan("4/layer", routing=PRIOR), "rtx3060")
    assert timed.time is not None and timed.regret is not None
    assert timed.bounds is not None and timed.bounds.best_tokens_per_second is not None
