"""The table of formats: fewer bits predict worse, and what a format cannot store is one line."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("hqq.core.quantize")
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.quality.measurement import load_measurement
from experiments.research.quality import main  # needs torch


def test_fewer_bits_predict_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CHECKPOINTS / NAMES[0]), "--every", "30", "--output", str(tmp_path)]
    assert main([*arguments, "--formats", "fp32,hqq-2bit-g64"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| mixtral-mini")]
    found = load_measurement(tmp_path / NAMES[0])
    assert [row[1] for row in rows] == ["as stored", *(plan.weights.experts for plan in found.plans)]
    losses = [plan.loss.value for plan in found.plans]
    assert losses[0] == 0 and losses[1] > 0.02
    assert found.plans[0].bits_per_parameter == 32
    assert rows[2][3] == f"{found.plans[1].bits_per_byte:.4f}"


def test_what_a_format_cannot_store_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--every", "100", "--formats", "hqq-2bit"]
    assert main([str(CHECKPOINTS / NAMES[1]), *arguments]) == 2
    assert "no multiple of the meta group size 128" in capsys.readouterr().err
    assert main(["/nowhere", *arguments]) == 2
