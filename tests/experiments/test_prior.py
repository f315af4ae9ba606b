"""`prior:MODEL`: three results, never without the words that say what they are."""

import json
from pathlib import Path

import msgspec
import pytest

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.shapes import load_shape
from experiments.cli.main import run
from experiments.prior import Asked, Interval, drawn, model_of, replay_prior
from experiments.recommend import recommend_on_prior
from experiments.validation.prior import against_prior, inside
from tests.helpers.command_line import assert_one_line
from tracekit.caution import MARK
from tracekit.errors import TraceError
from tracekit.priors import LEVELS
from tracekit.trace import Trace

ASKED = Asked(model="mixtral-8x7b", tokens=96, prompt_tokens=64)
PLAN = Plan("2/layer", weights="hqq-2bit")


def test_a_replay_is_three_replays_and_says_so() -> None:
    found = replay_prior(ASKED, PLAN, "rtx3060")
    shape = load_shape("mixtral-8x7b")
    with drawn(ASKED, shape) as traces:
        for level, trace in traces.items():
            alone, one = replay(trace, PLAN, "rtx3060", model_shape=shape), found.results[level]
            assert (alone.hits, alone.time, alone.estimates) == (one.hits, one.time, one.estimates)
            assert one.provenance["trace"] == "prior:mixtral-8x7b"
            assert one.provenance["prior"]["mark"] == MARK and one.provenance["prior"]["level"] == level
            assert any(MARK in warning for warning in one.warnings)
    speeds, hits, first = found.tokens_per_second, found.decode_hit_ratio, found.ttft_ms
    assert speeds.low is not None and speeds.likely is not None and speeds.high is not None
    assert speeds.low <= speeds.likely <= speeds.high
    assert hits.low is not None and hits.high is not None and hits.low < hits.high
    assert first.low is not None and first.low > 0
    assert "Mixtral-8x7B" in found.prior.known


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["replay", "prior:mixtral-8x7b", "--capacity", "auto", "--weights", "hqq-2bit", "--hardware", "rtx3060"]
    arguments += ["--tokens", "64", "--prompt-tokens", "512"]
    assert run([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["prior"]["mark"] == MARK and set(said["results"]) == set(LEVELS)
    assert said["ttft_ms"]["likely"] == said["results"]["likely"]["time"]["ttft_ms"]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert text.count(MARK) >= 2 and "least local" in text and "most local" in text
    assert run([*arguments, "--batch", "3", "--no-bounds"]) == 0
    assert "batched 3" in capsys.readouterr().out


def test_recommendations_are_between_the_localities() -> None:
    machine = load_hardware("rtx3060")
    found = recommend_on_prior(ASKED, machine, None, formats=("hqq-4bit",), context=4096)
    (choice,) = found.choices
    assert choice.low is not None and choice.high is not None
    assert choice.low <= choice.tokens_per_second <= choice.high and choice.low < choice.high
    assert found.prior is not None and found.prior.mark == MARK
    assert choice.plan.prefetch.predictor == "none"  # layers are independent: nothing to learn


def test_recommend_says_what_its_routing_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["recommend", "mixtral-8x7b", "--trace", "prior:mixtral-8x7b", "--hardware", "rtx3060"]
    arguments += ["--weights", "q4_k", "--tokens", "64", "--context", "2048"]
    assert run([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rtx3060"]
    assert said["prior"]["mark"] == MARK and said["plans"][0]["low"] < said["plans"][0]["high"]
    assert run([*arguments, "--output", str(tmp_path / "p.toml")]) == 0
    text = capsys.readouterr().out
    assert MARK in text and "least to most local" in text and "95 %" not in text


def test_like_writes_a_trace_that_others_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "made.trace"
    arguments = ["synthetic", "--like", "qwen3-30b-a3b", "--output", place, "--tokens", "70", "--prompt-tokens", "9"]
    assert run([str(word) for word in [*arguments, "--requests", "2", "--seed", "4", "--locality", "high"]]) == 0
    assert MARK in capsys.readouterr().out
    trace = Trace.open(place)
    assert (trace.layers, trace.num_experts, trace.top_k, trace.tokens) == (48, 128, 8, 88)
    assert trace.manifest.source == "synthetic prior"
    assert run(["info", str(place)]) == 0
    assert MARK in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replay", "prior:", "--capacity", "1/layer"], "of which model?"),
        (["replay", "prior:mixtrl-8x7b", "--capacity", "1/layer"], "mixtral-8x7b"),
        (["replay", "prior:mixtral-8x7b", "--capacity", "1/layer", "--model-shape", "olmoe"], "--model-shape"),
        (
            ["replay", "prior:mixtral-8x7b", "--capacity", "1/layer", "--tokens", "2", "--requests", "3"],
            "give --tokens 3",
        ),
        (
            ["size", "mixtral-8x7b", "--concurrency", "65536"],
            "(twice the 65536 at once): each needs one; give --tokens",
        ),
        (
            ["replay", "prior:mixtral-8x7b", "--capacity", "1/layer", "--prefetch", "gate"],
            "which prior:mixtral-8x7b does",
        ),
        (["replay", "some.trace", "--capacity", "1/layer", "--prompt-tokens", "9"], "give prior:MODEL"),
        (["recommend", "trace", "--trace", "x", "--hardware", "t4", "--tokens", "9"], "give prior:MODEL"),
        (["synthetic", "--output", "x.trace", "--prompt-tokens", "9"], "give --like too"),
        (["synthetic", "--output", "x.trace", "--like", "mixtral-8x7b", "--zipf", "1"], "leave out --zipf"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(arguments)
    printed = capsys.readouterr()
    assert_one_line(code, printed.out, printed.err, words)


def test_a_measurement_is_inside_or_outside(tmp_path: Path) -> None:
    """A run whose routing is the likely one lies inside; one that is far slower does not."""
    machine = load_hardware("rtx3060")
    shape = load_shape("mixtral-8x7b")
    with drawn(ASKED, shape) as traces:
        check = against_prior(traces["likely"], PLAN, machine, 0.05, shape=shape)
        said = check.tokens_per_second
        assert said.high is not None and said.likely is not None
        assert check.inside is False and "outside" in check.sentence() and check.hit_ratio_inside is True
        again = against_prior(traces["likely"], PLAN, machine, said.likely, shape=shape)
    assert again.inside is True and f"measured {said.likely:.2f}, inside" in again.sentence()
    assert msgspec.to_builtins(again)["mark"] == MARK


def test_inside() -> None:
    assert inside(Interval(low=1.0, likely=2.0, high=3.0), 3.0)
    assert not inside(Interval(low=1.0, likely=2.0, high=3.0), 3.1)
    assert inside(Interval(low=None, likely=2.0, high=3.0), 2.5) is None
    assert inside(Interval(low=1.0, likely=2.0, high=3.0), None) is None


def test_names() -> None:
    assert model_of(Path("prior:a/config.json")) == "a/config.json" and model_of("my.trace") is None
    with pytest.raises(TraceError, match="such as prior:mixtral-8x7b"):
        model_of("prior:")
