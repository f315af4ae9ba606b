"""docs/league.md says what the simulator says of published measurements."""

import re
from pathlib import Path

import pytest

from experiments.research.league.__main__ import run
from experiments.research.league.all_sources import all_sources
from experiments.research.league.batched_h100 import batched_h100
from experiments.research.league.entries import Entry, Source
from experiments.research.league.lru_sweep import lru_sweep
from experiments.research.league.page import missing, page, rows
from tests.helpers.command_line import assert_one_line

PAGE = Path(__file__).resolve().parents[3] / "docs" / "league.md"
HINT = "run: python -m experiments.research.league --data FOLDER --write docs/league.md"
DIGITS = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def h100(shared_data: Path) -> Source:
    if not (shared_data / "h100-mixtral").is_dir():
        pytest.skip(f"the published times of batched Mixtral are not at {shared_data}/h100-mixtral")
    return batched_h100(shared_data)


@pytest.fixture(scope="module")
def sources(shared_data: Path) -> list[Source]:
    for folder in ("h100-mixtral", "qwen3-30b-a3b-phone"):
        if not (shared_data / folder).is_dir():
            pytest.skip(f"the league's figures are not at {shared_data}/{folder}")
    return all_sources(shared_data)


def test_page_is_current(sources: list[Source]) -> None:
    have, want = PAGE.read_text("utf-8"), page(sources)
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


def test_at_most_two_numbers_are_fitted_for_a_machine_and_every_miss_says_what_is_missing(
    sources: list[Source],
) -> None:
    """A number for each size of the first source's cache; else two rows of a machine at most."""
    for source in sources[1:]:
        for machine in {entry.machine for entry in source.entries}:
            assert sum(e.kind == "fitted" for e in source.entries if e.machine == machine) <= 2
    for source in sources[2:]:
        for entry in source.entries:
            off = entry.predicted is None or abs(entry.error or 0) > 0.2
            assert not (entry.kind == "predicted" and off) or entry.missing, entry.row


def test_a_cache_of_slots_takes_what_its_misses_take() -> None:
    """By hand, for nothing is hidden: (1 - 0.366) and (1 - 0.741) of 384 lookups a token give two equations."""
    source = lru_sweep()
    times = [1 / 10.51, 1 / 20.99]
    copy = (times[0] - times[1]) / (384 * (0.741 - 0.366))
    fixed = times[0] - copy * 384 * (1 - 0.366)
    for entry, hits in zip(source.entries, (0.366, 0.741, 0.894, 0.962), strict=False):
        assert entry.predicted == pytest.approx(1 / (fixed + copy * 384 * (1 - hits)), rel=1e-3)


def test_the_phones_own_routing_is_foreseen_from_another_run(sources: list[Source]) -> None:
    """One number is fitted, on counts of a run with a smaller cache; the published routing is replayed with it."""
    (source,) = (one for one in sources if one.name == "phone")
    (entry,) = (one for one in source.entries if "its own routing" in one.row)
    assert entry.error is not None and abs(entry.error) < 0.02


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
