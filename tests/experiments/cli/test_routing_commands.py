"""Routing policies on the command line: labelled, logged, kept in traces, and mistakes are one line."""

import json
from pathlib import Path

import polars as pl
import pytest

from engine.plan.plan import Plan
from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.quality import small_model
from tests.helpers.routing_traces import logits_trace
from tracekit.notes import is_altered
from tracekit.trace import Trace

PRIOR = {"policy": "cache-prior", "strength": 0.5}


def test_replay_labels_counts_and_logs(tmp_path: Path, call: Call) -> None:
    trace, events = logits_trace(tmp_path / "t.trace").path, tmp_path / "e.parquet"
    way = [trace, "--capacity", "5/layer", "--routing-policy", "cache-prior", "--routing-set", "strength=0.6"]
    code, said, _ = call("replay", *way, "--events", events)
    assert code == 0 and "a first-order estimate, with the gates' numbers as recorded" in " ".join(said.split())
    for words in ("routing: first-order estimate", "choices altered / dropped", "unaltered routing"):
        assert words in said
    code, said, _ = call("replay", *way, "--json")
    found = json.loads(said)
    assert found["routing"]["label"] == "first-order estimate" and found["bounds"]["routing"] == "unaltered"
    assert found["routing"]["altered"] == len(pl.read_parquet(tmp_path / "e.choices.parquet")) > 0
    # The log of decisions is of altered routing: the trace as recorded asks for other experts.
    assert_one_line(*call("replay", trace, "--decisions", events), "which")


def test_a_plan_and_options_over_it(tmp_path: Path, call: Call) -> None:
    trace, plan = logits_trace(tmp_path / "t.trace").path, tmp_path / "p.toml"
    plan.write_text(Plan("5/layer", routing=PRIOR).to_toml())
    found = {}
    for name, more in (
        ("plan", []),
        ("stronger", ["--routing-set", "strength=0.9"]),
        ("none", ["--routing-policy", "none"]),
        ("other", ["--routing-policy", "drop-cold", "--routing-set", "renormalise=false", "--routing-set", "share=1"]),
    ):
        code, said, _ = call("replay", trace, "--plan", plan, *more, "--json", "--no-bounds")
        assert code == 0
        found[name] = json.loads(said)
    assert found["stronger"]["misses"] < found["plan"]["misses"] < found["none"]["misses"]
    assert found["none"]["routing"] is None and found["plan"]["routing"]["dropped"] == 0
    assert found["other"]["provenance"]["plan"]["routing"]["renormalise"] is False
    assert found["other"]["routing"]["dropped"] > 0


def test_pruning_by_a_profile(tmp_path: Path, call: Call) -> None:
    profile, trace = (logits_trace(tmp_path / f"{seed}.trace", seed=seed).path for seed in (1, 2))
    way = ["replay", trace, "--capacity", "6/layer", "--routing-policy", "prune", "--routing-set", "keep=6"]
    code, said, _ = call(*way, "--routing-profile", profile, "--json", "--no-bounds")
    found = json.loads(said)
    assert code == 0 and found["misses"] <= 6 * 3 and found["routing"]["altered"] > found["routing"]["dropped"] == 0
    assert found["provenance"]["plan"]["routing"] == {"policy": "prune", "keep": 6, "profile": str(profile)}
    assert_one_line(*call(*way), "needs routing.profile")
    assert_one_line(*call(*way, "--routing-profile", tmp_path / "none"), "none")
    assert_one_line(*call(*way, "--routing-profile", trace), "no evidence")
    assert_one_line(*call(*way, "--routing-profile", profile, "--routing-set", "profile=1"), "NAME=VALUE")
    other = ["replay", trace, "--capacity", "6/layer", "--routing-policy", "substitute"]
    assert_one_line(*call(*other, "--routing-profile", profile), "reads no profile")


def test_mistakes_are_one_line(tmp_path: Path, call: Call) -> None:
    trace = logits_trace(tmp_path / "t.trace", tokens=19).path
    way = ["replay", trace, "--capacity", "2/layer"]
    prior = [*way, "--routing-policy", "cache-prior"]
    assert_one_line(*call(*way, "--routing-policy", "cache-pior"), "did you mean 'cache-prior'")
    assert_one_line(*call(*prior, "--routing-set", "strength"), "NAME=VALUE")
    assert_one_line(*call(*prior, "--routing-set", "share=0.1"), "no parameter 'share'")
    assert_one_line(*call(*way, "--routing-policy", "drop-cold", "--policy", "belady"), "knows the future")
    assert_one_line(
        *call("replay", "prior:mixtral-8x7b", "--capacity", "2/layer", "--routing-policy", "adaptive-k"),
        "replay a recorded trace",
    )


def test_record_keeps_what_was_altered_and_says_so(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("torch")
    model, prompts, plan, path = small_model(tmp_path / "small"), *(tmp_path / n for n in ("p.jsonl", "p.toml", "r"))
    prompts.write_text('{"id": "a", "prompt": "def read(self"}\n')
    plan.write_text(Plan("2/layer", routing=PRIOR).to_toml())
    command = ["record", model, "--prompts", prompts, "--plan", plan, "--device", "cpu", "--output", path]
    code, _, err = call(*command, "--max-new-tokens", "4")
    assert code == 0, err
    assert is_altered(Trace.open(path).manifest.notes)
    assert_one_line(*call(*command, "--max-new-tokens", "4", "--resume"), "a cache that is gone")
    same = ["replay", path, "--capacity", "2/layer", "--json"]
    code, said, _ = call(*same)
    assert code == 0 and json.loads(said)["routing"] is None
    assert_one_line(*call(*same, "--routing-policy", "drop-cold"), "recorded with altered routing")
