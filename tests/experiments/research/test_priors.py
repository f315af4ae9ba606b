"""The families give back what they were fitted to, and the page says what is measured."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.research.priors.figures import among_popular, drawn_figure, kept, lru
from experiments.research.priors.scoring import Point, score
from tests.helpers.priors import locality, only
from tracekit.importers import import_trace
from tracekit.priors import LEVELS, Known, family_names, load_family, prior_trace
from tracekit.stats import describe

PAGE = Path(__file__).parents[3] / "docs" / "sizing.md"
TOLERANCE = 0.05
"""Of a share: the worst that a family misses a published figure by; docs/sizing.md names it."""


@pytest.mark.parametrize("name", family_names())
def test_what_is_drawn_is_what_was_published(name: str) -> None:
    """All but those of several requests, which take longest; they stand on the page."""
    family = load_family(name)
    for known in family.known:
        if known.statistic not in ("static", "chance"):
            assert drawn_figure(known, family.locality(known.level)) == pytest.approx(known.value, abs=TOLERANCE)


def test_figures_are_those_of_the_package(tmp_path: Path) -> None:
    """Overlap as `tracekit info` counts it, LRU as written out, popularity by counting."""
    trace = prior_trace(tmp_path / "t.trace", [16] * 2, 3, tokens=60, family=only(locality(topic=0.3, fast=0.3)))
    experts = trace.experts
    assert kept(experts, 1).mean() == pytest.approx(describe(trace).overlap)
    hits = 0
    for layer in range(2):
        held: list[int] = []  # least recent first
        for row in experts[:, layer].tolist():
            hits += len(set(row) & set(held))
            held = ([expert for expert in held if expert not in row] + row)[-5:]
    assert lru(trace, 5) == pytest.approx(hits / experts.size)
    assert lru(trace, 4.5) == pytest.approx((lru(trace, 4) + lru(trace, 5)) / 2)
    popular = sum(sorted(np.bincount(experts[:, 0].ravel(), minlength=16))[-4:])
    assert among_popular(experts[:, :1], experts[:, :1], 4) == pytest.approx(popular / experts[:, 0].size)


def test_figures_need_no_sizes_that_sources_leave_out() -> None:
    one = Known(
        model="m", experts=16, top_k=2, statistic="static", value=0.5, level="low", source="x", slots=4, tokens=20
    )
    assert drawn_figure(one, locality(popularity=1.0)) == pytest.approx(1.0)
    assert drawn_figure(one, locality()) == pytest.approx(4 / 16, abs=0.05)


def test_a_recorded_trace_is_scored(shared_data: Path, tmp_path: Path) -> None:
    """The phone's trace, which no family was fitted to: LRU of up to three eighths of the experts lies inside."""
    trace = import_trace("bigmoe-csv", shared_data / "qwen3-30b-a3b-phone" / "route.csv", tmp_path / "phone.trace")
    points = {point.figure: point for point in score(trace, "phone")}
    assert {point.family for point in points.values()} == {"qwen3-moe"}
    for slots in (16, 32, 48):
        assert points[f"LRU, {slots} slots a layer"].inside


def test_inside_is_between_the_ends_in_either_order() -> None:
    point = Point(
        trace="t",
        experts=8,
        top_k=2,
        family="f",
        figure="experts of 4 tokens",
        recorded=5.0,
        said=dict(zip(LEVELS, (6.0, 5.5, 4.0), strict=True)),
    )
    assert point.inside


def test_the_page_holds_every_figure() -> None:
    """Each published figure stands on the page beside what was drawn, and none is missed by more than is said there."""
    text = PAGE.read_text()
    table = re.search(r"<!-- table:prior-figures -->\n(.*?)<!-- end -->", text, re.S)
    assert table is not None and f"{TOLERANCE}" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()[2:]]
    known = [one for name in family_names() for one in load_family(name).known]
    assert len(rows) == len(known)
    for row, one in zip(
        sorted(rows, key=lambda row: (row[5], row[3])),
        sorted(known, key=lambda one: (one.source, f"{one.value:.3f}")),
        strict=True,
    ):
        assert (row[3], row[5]) == (f"{one.value:.3f}", one.source)
        assert abs(float(row[4]) - one.value) <= TOLERANCE
