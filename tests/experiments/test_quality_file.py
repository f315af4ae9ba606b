"""What formats lose: read from what was measured, the largest of several models, and nothing taken for granted."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.recommend.quality import load_quality, parse_loss
from tracekit.errors import PlanError


def read(tmp_path: Path, value: Any) -> dict[str, float]:
    (tmp_path / "quality.json").write_text(json.dumps(value))
    return load_quality(tmp_path / "quality.json")


def test_losses_are_against_the_models_own_sixteen_bits(tmp_path: Path) -> None:
    rows = [
        {"model": "a", "format": "bf16", "bits_per_byte": 1.0, "perplexity": 9.0},
        {"model": "a", "format": "hqq-4bit", "bits_per_byte": 1.02, "perplexity": 9.9, "expert_bytes": 5},
        {"model": "a", "format": "hqq-8bit", "bits_per_byte": 0.99},
        {"model": "b", "format": "fp16", "bits_per_byte": 2.0},
        {"model": "b", "format": "hqq-4bit", "bits_per_byte": 2.10},
    ]
    found = read(tmp_path, rows)
    assert found == pytest.approx({"bf16": 0, "fp16": 0, "hqq-4bit-g64": 0.05, "hqq-8bit-g64": 0})
    assert read(tmp_path, [{"format": "bf16", "perplexity": 8}, {"format": "q4_k", "perplexity": 10}])["q4_k"] == 0.25


def test_what_the_command_measures_is_read_by_format(tmp_path: Path) -> None:
    """Attention in a format of its own says nothing of experts alone."""
    plans = [
        {"name": "x", "weights": {"experts": "hqq-4bit"}, "loss": {"value": 0.01, "low": 0.0, "high": 0.02}},
        {"name": "y", "weights": {"experts": "hqq-3bit", "attention": "hqq-4bit"}, "loss": {"value": 0.1}},
        {"name": "z", "weights": {}, "loss": {"value": 0.0}},
    ]
    assert read(tmp_path, {"kind": "quality", "model": {"name": "m"}, "plans": plans}) == {"hqq-4bit-g64": 0.01}
    assert load_quality(tmp_path) == {"hqq-4bit-g64": 0.01}, "the folder, too"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"hqq-4bit": "much"}, "Expected `float`"),
        ({"hqq-9bit": 0.1}, "hqq-9bit"),
        ({"hqq-4bit": -2}, "give a share"),
        ({}, "says nothing of any format"),
        ([{"format": "hqq-4bit", "bits_per_byte": 1}], "measure bf16, too"),
        (3, "Expected `object`"),
    ],
)
def test_what_cannot_be_read_is_one_line(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        read(tmp_path, value)
    assert "\n" not in str(caught.value)


def test_a_loss_is_a_share() -> None:
    assert [parse_loss(text) for text in ("2%", "0.5 %", "0.02", "0", None)] == [0.02, 0.005, 0.02, 0.0, None]
    for text in ("x", "-1%", "100%", "nan"):
        with pytest.raises(PlanError, match="is no share"):
            parse_loss(text)
