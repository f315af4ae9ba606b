"""`tracekit export`: what is printed, and counts that SGLang and KTransformers read."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.plan.placement import Placement, save_placement
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


def test_a_placement_is_written_as_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, counts, placement = tmp_path / "p.toml", tmp_path / "c.json", tmp_path / "own.placement.toml"
    table = {"1": [5, 9], "25": [63]}  # MoE layers: the model's are one further
    save_placement(Placement(by="even", slots="0/layer", experts_per_layer=[64] * 26, pinned=table), placement)
    plan.write_text(Plan("4/layer", placement=str(placement), miss="host").to_toml())
    arguments = ["export", str(plan), "--model", "deepseek-v2-lite", "--counts", str(counts)]
    assert run([*arguments, "--to", "ktransformers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ["--init-expert-location", str(counts.with_suffix(".pt"))] in found["arguments"]
    assert not any("placement" in line for line in found["lost"])
    pinned = np.array(json.loads(counts.read_text())["logical_count"])
    assert np.argwhere(pinned).tolist() == [[2, 5], [2, 9], [26, 63]]
    # Others do not read it so, and have nothing to write.
    counts.unlink()
    for engine in ("llama.cpp", "sglang"):
        assert run([*arguments, "--to", engine]) == 2
        error = capsys.readouterr().err
        assert "nothing is counted without --trace" in error and error.count("\n") == 1 and not counts.exists()
    assert run([*arguments[:-2], "--to", "llama.cpp"]) == 0
    assert f"not carried over: placement {placement}" in capsys.readouterr().out
    # A placement of another model is refused in one line.
    assert run(["export", str(plan), "--to", "vllm", "--model", "mixtral-8x7b"]) == 2
    assert "other MoE layers" in capsys.readouterr().err


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
