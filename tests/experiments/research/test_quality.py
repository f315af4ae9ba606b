"""The table of formats: fewer bits predict worse, and what a format cannot store is said in its row."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("hqq.core.quantize")
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.research.quality import main  # needs torch


def test_fewer_bits_predict_worse(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CHECKPOINTS / NAMES[0]), "--windows", "4", "--formats", "bf16,hqq-8bit,hqq-3bit,hqq-2bit-g64"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["format"] for row in found] == ["bf16", "hqq-8bit", "hqq-3bit", "hqq-2bit-g64"]
    bits = [row["bits_per_byte"] for row in found]
    assert abs(bits[1] - bits[0]) < 0.01
    assert bits[0] + 0.005 < bits[2] and bits[2] + 0.05 < bits[3]
    assert found[0]["bits_per_parameter"] == 16 and found[0]["tokens"] > 1500
    assert 1 < found[0]["perplexity"] < found[3]["perplexity"]


def test_what_a_format_cannot_store_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CHECKPOINTS / NAMES[1]), "--windows", "1", "--formats", "hqq-2bit"]) == 0
    assert "no multiple of the meta group size 128" in capsys.readouterr().out
    assert main(["/nowhere", "--formats", "bf16"]) == 2
