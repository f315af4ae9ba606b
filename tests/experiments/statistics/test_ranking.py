"""Rankings of plans whose differences are known; how often intervals and verdicts err, over a thousand repetitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from experiments.statistics.comparison import compare, judge
from experiments.statistics.ranking import in_words, rank_plans

REPETITIONS = 1000


def within(share: float, true: float) -> bool:
    """Whether a share of REPETITIONS is what `true` gives, give or take three standard errors."""
    return abs(share - true) <= 3 * math.sqrt(true * (1 - true) / REPETITIONS)


def paired(rng: np.random.Generator, faster: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs of `count` requests under two plans; the second takes `faster` more on average, with noise of 5 %."""
    base = rng.gamma(20, 5e7, count)
    return base * rng.normal(1, 0.05, count), base * rng.normal(1 + faster, 0.05, count)


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(20)
    held = 0
    for seed in range(REPETITIONS):
        a, b = paired(rng, 0.03, 80)
        found = compare(("A", a), ("B", b), "tokens/s", resamples=400, seed=seed)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.03 <= found.high
    assert within(held / REPETITIONS, 0.95), held


def test_plans_that_are_alike_are_told_apart_as_seldom_as_said() -> None:
    """The permutation test alone errs in 5 %; the verdict, which asks for the interval too, in no more."""
    rng = np.random.default_rng(21)
    small = shown = 0
    for seed in range(REPETITIONS):
        a, b = paired(rng, 0.0, 30)
        found = compare(("A", a), ("B", b), "tokens/s", resamples=400, seed=seed)
        small += found.p <= 0.05
        shown += judge([found])[0].outcome != "none"
    assert within(small / REPETITIONS, 0.05), small
    assert shown <= small and within(max(shown / REPETITIONS, 0.05), 0.05), shown


def test_a_family_of_plans_that_are_alike_errs_as_one() -> None:
    """Four plans, six pairs: the chance that any is said to beat any other is 5 % at most, not six times that."""
    rng = np.random.default_rng(22)
    repetitions, wrong = 150, 0
    for seed in range(repetitions):
        base = rng.gamma(20, 5e7, 25)
        costs = {name: base * rng.normal(1, 0.05, 25) for name in "ABCD"}
        places, _ = rank_plans(costs, "tokens/s", resamples=200, seed=seed)
        wrong += any(place.rank > 1 for place in places)
    assert wrong / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions), wrong


def test_a_difference_that_is_there_is_found_as_often_as_promised() -> None:
    """80 % power for 1 % with as many requests as a first sample asked for, by the spread that it had."""
    rng = np.random.default_rng(23)
    # Of b / a - 1: both are noisy by 5 %.
    needed = math.ceil(((1.95996 + 0.84162) * 0.05 * math.sqrt(2) / 0.01) ** 2)
    a, b = paired(rng, 0.01, needed)
    assert compare(("A", a), ("B", b), "tokens/s").more_requests == pytest.approx(0, abs=0.15 * needed)
    found = 0
    for seed in range(120):
        a, b = paired(rng, 0.01, needed)
        found += judge([compare(("A", a), ("B", b), "tokens/s", resamples=300, seed=seed)])[0].outcome == "better"
    assert 0.8 - 3 * math.sqrt(0.16 / 120) <= found / 120 <= 0.8 + 3 * math.sqrt(0.16 / 120), found


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
