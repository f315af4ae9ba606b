"""docs/paper.md says what the results say: its tables and every number in its sentences."""

import re
from pathlib import Path

import pytest

from experiments.research.paper import page
from experiments.research.paper.page_numbers import numbers
from experiments.research.paper.table2 import Table2, reproduce
from tracekit.errors import StudyError

PAGE = Path(__file__).resolve().parents[4] / "docs" / "paper.md"
HINT = "run: python -m experiments.research.paper table2 --write docs/paper.md"
DIGITS = re.compile(r"\d+(?:\.\d+)?")
MEASURED = re.compile(r".*(?:\d (?:%|ms|GB/s|tokens/s|billion)|\d\.\d(?! x16)).*")


@pytest.fixture(scope="module")
def result() -> Table2:
    return reproduce()


def test_page_is_current(result: Table2) -> None:
    have, want = PAGE.read_text(), page.filled(PAGE, result)
    assert DIGITS.sub("#", have) == DIGITS.sub("#", want), HINT
    for one, other in zip(DIGITS.findall(have), DIGITS.findall(want), strict=True):
        # Another processor may round a last digit the other way; anything more is another result.
        digits = len(other.partition(".")[2])
        assert abs(float(one) - float(other)) <= 1.5 * 10**-digits if digits else one == other, (
            f"{one}, {other}: {HINT}"
        )


def test_numbers_that_drifted_are_mended(result: Table2, tmp_path: Path) -> None:
    (tmp_path / "paper").symlink_to(PAGE.parent / "paper")
    drifted = tmp_path / "paper.md"
    drifted.write_text(re.sub(r"\d(?=\d*<!--)", "7", PAGE.read_text()).replace("| A100 |", "| B200 |"))
    assert page.filled(drifted, result) == page.filled(PAGE, result) != drifted.read_text()


def test_no_measured_number_stands_unnamed() -> None:
    """A quantity with a unit or decimals is filled in, or stands in a table, in code or in a link."""
    sentences = re.sub(r"^\|.*$|^    .*$|`[^`]*`|\]\([^)]*\)", "", PAGE.read_text(), flags=re.M)
    unnamed, named = page.NUMBER.subn("", sentences)
    assert MEASURED.findall(unnamed) == []
    assert named > 80


def test_unknown_names_are_refused(result: Table2, tmp_path: Path) -> None:
    (tmp_path / "paper").symlink_to(PAGE.parent / "paper")
    wrong = tmp_path / "paper.md"
    text = PAGE.read_text()
    for bad, word in (
        (text + "5<!--no.such-->", "no number 'no.such'"),
        (text.replace("table:fits", "table:other"), "other"),
    ):
        wrong.write_text(bad)
        with pytest.raises(StudyError, match=word):
            page.filled(wrong, result)


def test_numbers_say_what_the_table_published(result: Table2) -> None:
    known = numbers(result)
    assert known["t4.saved.2"] == pytest.approx(1000 / 1.567 - 1000 / 2.092)
    assert known["misprint.over"] == pytest.approx(1.791 / 1.346)
    assert known["t4.short"] == pytest.approx(known["t4.saved.2"] - known["t4.left.2"])


def test_pictures_of_the_page_exist() -> None:
    named = re.findall(r"\]\((paper/[^)]+)\)", PAGE.read_text())
    assert len(named) == 5
    for name in named:
        assert (PAGE.parent / name).stat().st_size > 1000
