"""docs/league.md says what the simulator says of published measurements."""

import re
from pathlib import Path

import pytest

from experiments.research.league.__main__ import run
from experiments.research.league.batched_h100 import batched_h100
from experiments.research.league.entries import Entry, Source
from experiments.research.league.page import missing, page, rows
from experiments.research.league.table2 import table2
from tests.helpers.command_line import assert_one_line

PAGE = Path(__file__).resolve().parents[3] / "docs" / "league.md"
HINT = "run: python -m experiments.research.league --data FOLDER --write docs/league.md"
DIGITS = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def h100(shared_data: Path) -> Source:
    if not (shared_data / "h100-mixtral").is_dir():
        pytest.skip(f"the published times of batched Mixtral are not at {shared_data}/h100-mixtral")
    return batched_h100(shared_data)


def test_page_is_current(h100: Source) -> None:
    have, want = PAGE.read_text("utf-8"), page([h100, table2()])
    assert DIGITS.sub("#", have) == DIGITS.sub("#", want), HINT
    for one, other in zip(DIGITS.findall(have), DIGITS.findall(want), strict=True):
        # Another processor may round a last digit the other way; anything more is another result.
        digits = len(other.partition(".")[2])
        assert abs(float(one) - float(other)) <= 1.5 * 10**-digits if digits else one == other, (one, other, HINT)


def test_batched_rows_without_prefetching_are_within_one_percent(h100: Source) -> None:
    """One number is fitted for each of three cache sizes, on its first row; the other nine rows are predicted."""
    fitted = [entry for entry in h100.entries if entry.kind == "fitted"]
    assert [entry.row for entry in fitted] == [f"{share} % cached, Belady" for share in (80, 70, 60)]
    assert all(abs(entry.error or 1) < 1e-5 for entry in fitted)
    assert len(h100.errors()) == 9
    assert abs(h100.worst_error) < 0.01


def test_misses_stay_in_with_what_is_missing() -> None:
    def entry(row: str, predicted: float | None, lack: str = "", kind: str = "predicted") -> Entry:
        return Entry(
            machine="m",
            row=row,
            kind="fitted" if kind == "fitted" else "predicted",
            published=2.0,
            predicted=predicted,
            missing=lack,
        )

    source = Source(
        name="s",
        title="S",
        origin="o",
        unit="ms",
        decimals=1,
        fits=["m: a number"],
        assumed="Nothing.",
        entries=[
            entry("a", 2.0, kind="fitted"),
            entry("b", 1.0, "the routing"),
            entry("c", None, "a rule"),
            entry("d", 2.5, "the routing"),
        ],
    )
    assert (source.errors(), source.worst_error, source.median_error, source.unanswered) == (
        [-0.5, 0.25],
        -0.5,
        0.375,
        1,
    )
    assert rows(source)[1:3] == [
        ["b", "m", "predicted", "2.0", "1.0", "-50.00 %"],
        ["c", "m", "no answer", "2.0", "-", "-"],
    ]
    assert missing(source) == ["b; d: the routing.", "c: a rule."]
    assert "- c: a rule." in page([source])


def test_without_its_figures_the_league_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRACEKIT_SHARED", raising=False)
    for arguments, word in (([], "--data"), (["--data", str(tmp_path)], "no-prefetch.csv")):
        code = run(arguments)
        printed = capsys.readouterr()
        assert_one_line(code, printed.out, printed.err, word)
