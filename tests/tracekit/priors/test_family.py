"""Families: data with a source for each figure, found by granularity, refused where they make no sense."""

import itertools
from pathlib import Path

import pytest
import tomli_w

from tests.helpers.priors import locality
from tracekit.errors import TraceError
from tracekit.priors import LEVELS, Family, family_names, family_of, load_family


@pytest.mark.parametrize("name", family_names())
def test_every_figure_has_its_source_and_lies_between_none_and_all(name: str) -> None:
    family = load_family(name)
    assert family.name == name and family.known
    for known in family.known:
        assert 0 < known.value < 1 and known.source.strip()
        assert any(word in known.source for word in ("arXiv", "https://", "docs/")), known.source
        assert (known.slots is None) == (known.statistic not in ("lru", "lru-cold", "hottest", "static"))
        assert (known.depth is None) == (known.statistic != "any-repeat")
        assert known.experts == family.experts
    assert "low" in {known.level for known in family.known}


@pytest.mark.parametrize("name", family_names())
def test_levels_are_in_order_at_every_lag_and_layer(name: str) -> None:
    """What makes low <= likely <= high: more correlation at every lag never means fewer common experts (Slepian)."""
    family = load_family(name)
    for less, more in itertools.pairwise(family.locality(level) for level in LEVELS):
        assert less.popularity <= more.popularity
        for layer, lag in itertools.product(range(3), (0, 1, 2, 4, 8, 16, 64, 1024)):
            here, there = (one.at_layer(layer, 3) * one.correlation(lag) for one in (less, more))
            assert here <= there


def test_nearest_granularity() -> None:
    assert {(e, k): family_of(e, k).name for e, k in ((8, 2), (32, 4), (64, 8), (128, 8), (256, 8), (512, 10))} == {
        (8, 2): "mixtral",
        (32, 4): "gpt-oss",
        (64, 8): "olmoe",
        (128, 8): "qwen3-moe",
        (256, 8): "deepseek",
        (512, 10): "qwen3-next",
    }
    assert family_of(64, 6).name == "olmoe"
    assert family_of(32, 4, without="qwen3-moe-mini").name == "olmoe"
    assert family_of(128, 4).name == "qwen3-moe"
    assert family_of(1, 1).name == "mixtral" and family_of(65535, 1).name == "qwen3-next"


def test_it_says_how_far_it_was_taken() -> None:
    family = load_family("olmoe")
    assert "nearest" not in family.notice(64, 8) and "OLMoE" in family.notice(64, 8)
    assert "nearest to top-4 of 32, itself top-8 of 64" in family.notice(32, 4)


def tables(**changed: object) -> dict[str, object]:
    """A family of one's own as TOML tables."""
    part = {"popularity": 0.1, "topic": 0.2, "slow": 0.1, "slow_tokens": 30, "fast": 0.1, "fast_tokens": 3}
    return {"name": "mine", "experts": 8, "top_k": 2, "known": [], **dict.fromkeys(LEVELS, part), **changed}


def write(folder: Path, content: dict[str, object]) -> Path:
    path = folder / "mine.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    family = load_family(write(tmp_path, tables()))
    assert isinstance(family, Family) and family.low.correlation(0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 9}, "top_k is 9 of 8 experts"),
        ({"low": {**tables()["low"], "topic": -0.1}}, "low: parts of a variance are 0 or more"),  # type: ignore[dict-item]
        ({"high": {**tables()["high"], "topic": 0.8}}, "high: the parts of the variance are 1.100, at most 1"),  # type: ignore[dict-item]
        ({"low": {**tables()["low"], "fast_tokens": 0}}, "slow_tokens and fast_tokens are above 0"),  # type: ignore[dict-item]
        ({"low": {**tables()["low"], "topics": 0.1}}, "topics"),  # type: ignore[dict-item]
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    with pytest.raises(TraceError) as found:
        load_family(write(tmp_path, tables(**changed)))
    assert words in str(found.value) and "\n" not in str(found.value)


def test_unknown_names_are_guessed_at() -> None:
    with pytest.raises(TraceError, match="mixtral"):
        load_family("mixtrl")


def test_ends_are_the_first_layer_and_the_last() -> None:
    assert [locality(ends=(0.5, 0.2)).at_layer(layer, 4) for layer in range(4)] == [0.5, 1.0, 1.0, 0.2]
    assert locality(ends=(0.5, 0.2)).at_layer(0, 1) == 0.5
