"""`tracekit export`: what is printed, and counts that SGLang and KTransformers read."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.plan.plan import Plan
from experiments.cli.main import run
from tests.helpers.traces import make_trace
from tracekit.popularity import popularity


def test_a_plan_and_counts_for_ktransformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, counts = tmp_path / "p.toml", tmp_path / "c.json"
    plan.write_text(Plan("4/layer", prefetch="gate").to_toml())
    experts = np.random.default_rng(0).random((50, 26, 64)).argsort(axis=2)[:, :, :6]
    trace = make_trace(tmp_path / "t.trace", experts, num_experts=64)
    arguments = [
        "export",
        str(plan),
        "--to",
        "ktransformers",
        "--model",
        "deepseek-v2-lite",
        "--trace",
        str(trace.path),
    ]
    assert run([*arguments, "--counts", str(counts)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("--kt-num-gpu-experts 4 --kt-expert-placement-strategy frequency --init-expert-location")
    assert "not carried over: prefetch gate" in printed
    assert run([*arguments, "--counts", str(counts)]) == 2
    assert "exists: choose another --counts" in capsys.readouterr().err
    table = np.array(json.loads(counts.read_text())["logical_count"])
    assert table.shape == (27, 64) and not table[0].any()  # the dense layer counts nothing
    assert np.array_equal(table[1], np.bincount(experts[:, 0].ravel(), minlength=64))
    assert np.array_equal(popularity(counts, [64] * 26), popularity(trace.path, [64] * 26))


def test_json_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text(Plan("4/layer", weights="q4_k").to_toml())
    assert run(["export", str(plan), "--to", "llama.cpp", "--model", "mixtral-8x7b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ["--moe-cache-mib", str(4 * 32 * 3 * 4096 * 14336 * 9 // 16 // 2**20)] in found["arguments"]
    for more, says in (
        (["--to", "ollama", "--model", "mixtral-8x7b"], "no export to 'ollama'"),
        (["--to", "vllm", "--model", "x"], "unknown"),
    ):
        assert run(["export", str(plan), *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
