"""Recommendations: the best of every plan there is, within memory, and the figures of a replay."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.replay import replay
from engine.shapes import load_shape
from experiments.cli.main import run
from experiments.recommend import recommend
from tests.helpers.traces import make_trace
from tracekit.errors import StudyError
from tracekit.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Forty requests of 20 tokens that like few of eight experts, each others, in four layers."""
    rng = np.random.default_rng(1)
    liked = rng.random((40, 1, 4, 8)) ** 4
    experts = (rng.random((40, 20, 4, 8)) * liked).argsort(axis=3)[..., -2:].reshape(800, 4, 2)
    request = np.repeat(np.arange(40), 20)
    place = tmp_path_factory.mktemp("traces") / "t.trace"
    return make_trace(place, experts, num_experts=8, request=request, position=np.tile(np.arange(20), 40))


def test_the_best_of_each_format_fits_and_is_what_a_replay_says(trace: Trace) -> None:
    machine, shape = load_hardware("rtx3060"), load_shape("mixtral-8x7b")
    found = recommend(trace, machine, shape, context=4096, formats=("bf16", "hqq-4bit", "hqq-2bit"))
    assert [choice.plan.weights.experts for choice in found.choices] == ["hqq-2bit", "hqq-4bit"]
    assert list(found.refused) == ["bf16"] and "one slot per layer" in found.refused["bf16"]
    for choice in found.choices:
        again = replay(trace, choice.plan, machine, model_shape=shape, bounds=False)
        assert again.time is not None and again.estimates is not None
        assert again.time.tokens_per_second == choice.tokens_per_second
        assert again.estimates.device_bytes <= machine.device.memory_bytes and choice.plan.serve.context == 4096
        assert choice.low is not None and choice.high is not None
        assert choice.low < choice.tokens_per_second < choice.high
        for policy in ("lru", "lfu", "s3fifo"):
            plain = choice.plan.replace(eviction=Plan("1", eviction=policy).eviction, prefetch=Plan("1").prefetch)
            other = replay(trace, plain, machine, model_shape=shape, bounds=False).time
            assert other is not None and other.tokens_per_second is not None
            assert choice.tokens_per_second >= 0.97 * other.tokens_per_second


def test_the_command_writes_the_plan(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "best.plan.toml"
    arguments = ["recommend", "mixtral-8x7b", "--trace", str(trace.path), "--hardware", "rtx3060", "--weights", "q4_k"]
    assert run([*arguments, "--context", "4096", "--output", str(plan), "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    assert best["plan"]["weights"]["experts"] == "q4_k"
    assert (
        run(
            [
                "replay",
                str(trace.path),
                "--plan",
                str(plan),
                "--hardware",
                "rtx3060",
                "--model-shape",
                "mixtral-8x7b",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["time"]["tokens_per_second"] == best["tokens_per_second"]
    assert run([*arguments, "--output", str(plan)]) == 2
    assert "exists: choose another --output" in capsys.readouterr().err
    assert run([*arguments, "--output", str(tmp_path / "nowhere" / "p.toml")]) == 2
    assert "is no directory" in capsys.readouterr().err
    several = [*arguments, "--context", "4096", "--hardware", "t4", "--output", str(tmp_path / "plans")]
    assert run(several) == 0
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == ["rtx3060.plan.toml", "t4.plan.toml"]
    capsys.readouterr()
    assert run([*arguments, "--memory", "13GiB", "--context", "4096"]) == 0
    assert "q4_k" in capsys.readouterr().out
    assert run([*arguments, "--memory", "4GiB"]) == 2
    error = capsys.readouterr().err
    assert "no format fits rtx3060" in error and error.count("\n") == 1


def test_nothing_that_fits_is_an_error(trace: Trace) -> None:
    with pytest.raises(StudyError, match="no format fits t4"):
        recommend(trace, load_hardware("t4"), load_shape("mixtral-8x22b"), formats=("bf16",))


def test_a_trace_that_routes_otherwise_is_refused_or_reshaped(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", "gpt-oss-20b", "--trace", str(trace.path), "--hardware", "rtx3060", "--weights", "mxfp4"]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "--reshape sizes" in error and error.count("\n") == 1
    assert run([*arguments, "--reshape", "sizes", "--engine", "graph-fused", "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["rtx3060"]["plans"]
    assert best["time"]["engine"] == "graph-fused" and best["tokens_per_second"] > 0
