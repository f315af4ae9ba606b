"""The table of pruned experts: the fewer are left, the more is lost."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.quality.measurement import load_measurement
from experiments.research.pruning import main  # needs torch


def test_the_fewer_experts_are_left_the_more_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CHECKPOINTS / NAMES[0]), "--output", str(tmp_path), "--texts", "1", "--profile", "1"]
    assert main([*arguments, "--eighths", "7,4", "--characters", "200"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| mixtral-mini")]
    found = load_measurement(tmp_path / NAMES[0] / "quality")
    few, fewer = (plan.loss.value for plan in found.plans[:2])
    assert 0 < few < fewer
    assert [row[0].partition(": ")[2] for row in rows] == ["all", *(plan.name for plan in found.plans)]
    assert rows[2][1] == f"{found.plans[1].bits_per_byte:.4f}"
    assert main(["/nowhere", *arguments[1:]]) == 2
