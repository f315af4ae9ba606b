"""What formats lose: read from what was measured or written by hand, and nothing taken for granted."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.quality.losses import load_losses
from tracekit.errors import TracekitError


def read(tmp_path: Path, value: Any) -> dict[str, float]:
    (tmp_path / "quality.json").write_text(json.dumps(value))
    return load_losses(tmp_path / "quality.json")


def test_what_is_written_by_hand_is_read_by_whole_names(tmp_path: Path) -> None:
    found = read(tmp_path, {"q4_k": 0.02, "hqq-4bit": 0.01, "hqq-4bit-g64": 0.015, "hqq-8bit": -0.001})
    assert found == {"q4_k": 0.02, "hqq-4bit-g64": 0.015, "hqq-8bit-g64": 0.0}, "the larger; a gain is noise"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"hqq-4bit": "much"}, "Expected `float`"),
        ({"hqq-9bit": 0.1}, "hqq-9bit"),
        ({"hqq-4bit": -2}, "give a share"),
        ({}, "says nothing of any format"),
        ([{"format": "hqq-4bit", "bits_per_byte": 1}], "Expected `object`"),
        (3, "Expected `object`"),
        ({"kind": "quality", "plans": []}, "is not what tracekit quality writes"),
    ],
)
def test_what_cannot_be_read_is_one_line(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(TracekitError, match=said) as caught:
        read(tmp_path, value)
    assert "\n" not in str(caught.value)
