"""Halves of surrogate pairs are named wherever JSON is read line by line."""

from pathlib import Path

import pytest

from tracekit.errors import ImportFormatError
from tracekit.importers import import_trace
from tracekit.json_text import lone_surrogate


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (r'"\ud83d"', "d83d"),
        (r'"\uD83D x \ude00"', "d83d"),
        (r'"a \ude00"', "de00"),
        (r'"\ud83d\ud83d\ude00"', "d83d"),
        (r'"\ud83d\u0041"', "d83d"),
        (r'"\ud83d\ude00"', None),
        (r'"\\ud83d"', None),
        (r'"\u00e4 \n"', None),
        ("", None),
    ],
)
def test_halves_are_found(text: str, half: str | None) -> None:
    assert lone_surrogate(text.encode()) == half


@pytest.mark.parametrize("format_name", ["jsonl", "vllm"])
def test_imports_name_them(tmp_path: Path, format_name: str) -> None:
    (tmp_path / "log").write_bytes(b'{"layer": 0, "ids": [1], "text": "\\ud83d"}\n' * 2)
    with pytest.raises(ImportFormatError, match=r"line 1 holds \\ud83d, one half of a surrogate pair"):
        import_trace(format_name, tmp_path / "log", tmp_path / "a.trace")
