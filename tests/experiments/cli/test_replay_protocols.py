"""`tracekit replay` by the protocols of published simulators: reset by request, warm start, warm-up, next step."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import make_trace, random_experts

OPTIONS = ["--capacity", "3/layer", "--hardware", "rtx3060"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three requests of four prompt tokens and ten decode steps each; 3 layers, top-2 of 8."""
    rng = np.random.default_rng(0)
    step = np.concatenate([np.concatenate([[0] * 4, np.arange(1, 11)]) + 11 * number for number in range(3)])
    make_trace(
        tmp_path / "t.trace",
        random_experts(rng, tokens=42, layers=3),
        num_experts=8,
        step=step,
        request=np.repeat([0, 1, 2], 14),
        position=np.tile(np.arange(14), 3),
        phase=np.tile([0] * 4 + [1] * 10, 3),
        expert_bytes=[3_000_000] * 3,
        expert_params=[1_500_000] * 3,
    )
    return tmp_path / "t.trace"


def replayed(call: Call, *arguments: object) -> dict[str, Any]:
    code, out, err = call("replay", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = msgspec.json.decode(out)
    return found


def test_a_reset_replays_each_request_by_itself(call: Call, trace: Path, tmp_path: Path) -> None:
    whole = replayed(call, trace, *OPTIONS, "--warm", "reset")
    assert whole["provenance"]["plan"]["cache"]["warm"] == "reset"
    alone = []
    for number in range(3):
        part = tmp_path / f"{number}.trace"
        assert call("slice", trace, "--requests", f"{number}:{number + 1}", "--output", part)[0] == 0
        alone.append(replayed(call, part, *OPTIONS))
    for name in ("lookups", "hits", "loads", "bypasses", "bytes_loaded"):
        assert whole[name] == sum(one[name] for one in alone), name
    assert whole["time"]["total_s"] == pytest.approx(sum(one["time"]["total_s"] for one in alone), rel=1e-12)
    assert whole["hits"] < replayed(call, trace, *OPTIONS)["hits"]
    assert whole["hit_ratio"] <= whole["bounds"]["hit_ratio"]


def test_a_warm_cache_hits_at_once(call: Call, trace: Path) -> None:
    cold = replayed(call, trace, "--capacity", "100%")
    warm = replayed(call, trace, "--capacity", "100%", "--warm", trace, "--allow-fitted")
    assert any("NOT EVIDENCE" in text and "cache.warm" in text for text in warm["warnings"])
    assert cold["misses"] > 0 and warm["misses"] == 0
    assert warm["provenance"]["plan"]["cache"]["warm"] == str(trace)
    assert warm["bounds"]["hit_ratio"] == 1.0
    assert_one_line(*call("replay", trace, *OPTIONS, "--warm", trace), "cache.warm", "they are no evidence")
    assert_one_line(*call("replay", trace, *OPTIONS, "--reset", "request"), "--reset request is now --warm reset")


def test_a_saved_cache_is_what_another_begins_with(call: Call, trace: Path, tmp_path: Path) -> None:
    """Replayed in two parts, LRU hits as in one; whose requests brought the cache there is known."""
    first, second, saved = tmp_path / "1.trace", tmp_path / "2.trace", tmp_path / "w.placement.toml"
    assert call("slice", trace, "--requests", "0:2", "--output", first)[0] == 0
    assert call("slice", trace, "--requests", "2:3", "--output", second)[0] == 0
    before = replayed(call, first, "--capacity", "3/layer", "--save-warm", saved)
    after = replayed(call, second, "--capacity", "3/layer", "--warm", saved)
    assert before["hits"] + after["hits"] == replayed(call, trace, "--capacity", "3/layer")["hits"]
    assert after["hit_ratio"] <= after["bounds"]["hit_ratio"]
    assert_one_line(*call("replay", first, "--capacity", "3/layer", "--warm", saved), "cache.warm", "no evidence")
    assert_one_line(*call("replay", first, "--capacity", "3/layer", "--save-warm", saved), "exists")
    assert_one_line(*call("replay", first, "--capacity", "3/layer", "--save-warm", "w.json"), "NAME.placement.toml")


def test_events_of_warm_and_emptied_caches_can_be_replayed(call: Call, trace: Path, tmp_path: Path) -> None:
    for how in (["--warm", trace, "--allow-fitted"], ["--warm", "reset"], ["--prefetch", "markov", "--prefetch-wrap"]):
        own = replayed(call, trace, *OPTIONS, *how, "--events", tmp_path / "e.parquet", "--warm-up", 5)
        more = how[2:] if how[-1] == "--allow-fitted" else []
        read = replayed(call, trace, "--decisions", tmp_path / "e.parquet", *OPTIONS[2:], "--warm-up", 5, *more)
        assert read["time"] == own["time"] and read["phases"] == own["phases"], how
        assert read["provenance"]["warm_up"] == {"tokens": 5, "steps": 2}


def test_wrong_words_are_one_line(call: Call, trace: Path) -> None:
    found = call("replay", trace, *OPTIONS, "--prefetch", "gate", "--prefetch-wrap")
    assert_one_line(*found, "'gate' knows nothing of the next step")
    assert_one_line(*call("replay", trace, *OPTIONS, "--warm", "token"), "token")
    assert_one_line(*call("replay", trace, *OPTIONS, "--batch", 2, "--warm", "reset"), "do not follow one another")
    assert_one_line(*call("replay", trace, *OPTIONS, "--warm-up", 42), "leaves nothing to count")
    found = call("replay", trace, "--decisions", "e.parquet", "--warm", trace, "--labels", trace)
    assert_one_line(*found, "leave out --warm, --labels")
