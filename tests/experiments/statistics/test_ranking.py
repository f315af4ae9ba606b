"""Rankings of plans whose differences are known; how often intervals and verdicts err, over a thousand repetitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from experiments.statistics.comparison import compare, judge
from experiments.statistics.ranking import in_words, rank_plans

REPETITIONS = 1000


def paired(rng: np.random.Generator, faster: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs of `count` requests under two plans; the second takes `faster` more on average, with noise of 5 %."""
    base = rng.gamma(20, 5e7, count)
    return base * rng.normal(1, 0.05, count), base * rng.normal(1 + faster, 0.05, count)


def test_plans_that_are_alike_are_told_apart_as_seldom_as_said() -> None:
    rng = np.random.default_rng(21)
    shown = 0
    for _ in range(REPETITIONS):
        a, b = paired(rng, 0.0, 30)
        shown += judge([compare(("A", a), ("B", b), "tokens/s")])[0].outcome in ("better", "worse")
    assert 0 < shown / REPETITIONS <= 0.05, shown


def test_a_family_of_plans_that_are_alike_errs_as_one() -> None:
    """Four plans, six pairs: the chance that any is said to beat any other is 5 % at most, not six times that."""
    rng = np.random.default_rng(22)
    repetitions, wrong = 400, 0
    for _ in range(repetitions):
        base = rng.gamma(20, 5e7, 25)
        costs = {name: base * rng.normal(1, 0.05, 25) for name in "ABCD"}
        places, _ = rank_plans(costs, "tokens/s")
        wrong += any(place.rank > 1 for place in places)
    assert wrong / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions), wrong


def test_a_difference_that_is_there_is_settled_as_often_as_promised() -> None:
    """80 % power for 1 % with as many requests as a first sample asked for, by the spread that it had."""
    rng = np.random.default_rng(23)
    # Of b / a - 1: both are noisy by 5 %.
    needed = math.ceil(((1.95996 + 0.84162) * 0.05 * math.sqrt(2) / 0.01) ** 2)
    a, b = paired(rng, 0.01, needed)
    found = compare(("A", a), ("B", b), "tokens/s", least_effect=0.01)
    assert found.more_requests == pytest.approx(0, abs=0.15 * needed)
    settled = 0
    for _ in range(200):
        a, b = paired(rng, 0.01, needed)
        (one,) = judge([compare(("A", a), ("B", b), "tokens/s", least_effect=0.01)], least_effect=0.01)
        settled += one.outcome in ("better", "level")
    assert abs(settled / 200 - 0.8) <= 3 * math.sqrt(0.16 / 200), settled


@pytest.fixture
def known() -> dict[str, np.ndarray]:
    """B and C differ by chance alone; A is 10 % better than either, D 20 % worse; E is B once more."""
    rng = np.random.default_rng(24)
    base = rng.gamma(20, 5e7, 40)
    noise: Callable[[float], np.ndarray] = lambda mean: base * rng.normal(mean, 0.02, 40)  # noqa: E731
    costs = {"D": noise(1.2), "B": noise(1.0), "A": noise(0.9), "C": noise(1.0)}
    return costs | {"E": costs["B"].copy()}


def test_ranks_are_of_what_was_shown(known: dict[str, np.ndarray]) -> None:
    places, comparisons = rank_plans(known, "tokens/s")
    assert (places[0].name, places[0].rank) == ("A", 1)
    assert {place.name: place.rank for place in places} == {"A": 1, "B": 2, "C": 2, "E": 2, "D": 5}
    by_name = {place.name: place for place in places}
    assert set(by_name["B"].ties) == {"C", "E"} and by_name["A"].ties == by_name["D"].ties == ()
    assert set(by_name["D"].beaten_by) == {"A", "B", "C", "E"}
    assert len(comparisons) == 10 and {one.outcome for one in comparisons} == {"better", "none", "identical"}
    told = in_words(places)
    assert told[0] == "1. A" and told[-1] == "5. D" and any(" level with " in line for line in told[1:4])


def test_the_order_given_changes_nothing(known: dict[str, np.ndarray]) -> None:
    turned = dict(reversed(known.items()))
    ours, theirs = (rank_plans(costs, "tokens/s")[0] for costs in (known, turned))
    assert {(p.name, p.rank, frozenset(p.ties)) for p in ours} == {(p.name, p.rank, frozenset(p.ties)) for p in theirs}


def test_few_requests_rank_nobody() -> None:
    costs = {name: np.full(4, 1e9 * value) for name, value in (("A", 1.0), ("B", 2.0), ("C", 3.0))}
    assert {place.rank for place in rank_plans(costs, "tokens/s")[0]} == {1}
