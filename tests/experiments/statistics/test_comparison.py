"""Comparisons with known answers: plans that are equal, one that is better on every request, noise."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.statistics.comparison import Comparison, Quantity, compare, fewest_requests, holm, judge
from tracekit.errors import StudyError


def one(a: np.ndarray, b: np.ndarray, quantity: Quantity = "tokens/s") -> Comparison:
    (found,) = judge([compare(("A", a), ("B", b), quantity)])
    return found


def costs(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).gamma(20, 5e7, count).round()


def test_the_same_costs_are_no_difference() -> None:
    found = one(costs(30), costs(30))
    assert found.outcome == "identical" and (found.effect, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "no difference: A and B cost the same on every request"


def test_plans_that_differ_by_chance_alone_show_none() -> None:
    """Each request's two costs are drawn alike, so whichever plan is called A, none is better."""
    rng = np.random.default_rng(3)
    base, wrong = costs(40), 0
    for _ in range(40):
        noise = rng.normal(1, 0.02, (2, 40))
        found = one(base * noise[0], base * noise[1])
        wrong += found.outcome != "none"
        if found.outcome == "none":
            assert "no difference shown between A and B at this trace length" in found.verdict
    assert wrong <= 6  # 5 % of 40, and then some


def test_a_plan_that_is_better_on_every_request_beats() -> None:
    a = costs(20)
    noise = np.random.default_rng(2).normal(1.05, 0.01, 20)
    found = one(a, a * noise)
    assert found.outcome == "better" and found.wins == 20
    assert found.low is not None and found.high is not None
    assert 0.03 < found.low < found.effect < found.high < 0.07
    assert found.verdict.startswith("A beats B by ") and "% tokens/s [" in found.verdict
    assert found.effect == pytest.approx((a * noise).sum() / a.sum() - 1)
    (turned,) = judge([compare(("B", a * noise), ("A", a), "tokens/s")])
    assert turned.outcome == "worse"
    assert turned.verdict == found.verdict  # the same sentence, whoever comes first


def test_a_plan_that_is_better_by_the_same_share_everywhere() -> None:
    """No request says anything else than any other: the interval is a point."""
    found = one(costs(12), costs(12) * 2)
    assert found.outcome == "better"
    assert (found.low, found.effect, found.high) == (1.0, 1.0, 1.0)


def test_costs_are_told_as_what_is_saved() -> None:
    found = one(costs(12), costs(12) * 4, "bytes loaded")
    assert found.effect == 0.75 and found.verdict == "A beats B by 75.0 % of the bytes [75.0, 75.0]"
    nothing = one(np.zeros(12), costs(12), "bytes loaded")
    assert nothing.effect == 1.0 and nothing.outcome == "better"


def test_few_requests_tell_nothing() -> None:
    assert fewest_requests(0.95) == 6 and fewest_requests(0.99) == 8
    for count in (1, 2, 3, 5):
        found = one(costs(count), costs(count) * 2)
        assert found.outcome == "too few"
        assert "cannot tell; at least 6 are needed" in found.verdict
    assert one(costs(6), costs(6) * 2).outcome == "better"


def test_as_many_more_requests_as_said_do_show_a_difference() -> None:
    """A true difference of 1 %: with as many requests as were asked for, most trials find it."""
    rng = np.random.default_rng(5)

    def trial(count: int, seed: int) -> Comparison:
        a = costs(count, seed)
        return one(a * rng.normal(1, 0.05, count), a * rng.normal(1.01, 0.05, count))

    small = [trial(30, seed) for seed in range(12)]
    needed = int(np.median([30 + found.more_requests for found in small]))
    assert 250 < needed < 900
    shown = [trial(needed, seed).outcome == "better" for seed in range(20)]
    assert 0.5 <= np.mean(shown) <= 1


def test_many_comparisons_ask_for_more() -> None:
    """What convinces alone need not among fifty."""
    rng = np.random.default_rng(11)
    a = costs(25)
    found = compare(("A", a), ("B", a * rng.normal(1.02, 0.045, 25)), "tokens/s")
    assert found.p < 0.05 and found.low is not None and found.low > 0
    assert judge([found])[0].outcome == "better"
    chance = [compare(("A", a), ("C", a * rng.normal(1, 0.02, 25)), "tokens/s") for _ in range(4)] * 12
    corrected = judge([found, *chance])[0]
    assert corrected.outcome == "none" and "among so many comparisons that may be chance" in corrected.verdict


def test_the_interval_is_bca_and_the_probability_exact() -> None:
    """Both from their definitions: Efron 1987 with jackknife acceleration; all 2^11 swaps."""
    count, rng = 11, np.random.default_rng(6)
    a = rng.gamma(1.2, 1e8, count)
    b = a * rng.lognormal(0.1, 0.3, count)
    found = compare(("A", a), ("B", b), "tokens/s", resamples=40_000)
    drawn = np.random.default_rng(9).integers(0, count, (200_000, count))
    samples, effect = b[drawn].sum(1) / a[drawn].sum(1) - 1, b.sum() / a.sum() - 1
    left = np.array([np.delete(b, k).sum() / np.delete(a, k).sum() for k in range(count)])
    away = left.mean() - left
    pull = (away**3).sum() / 6 / (away**2).sum() ** 1.5
    normal = NormalDist()
    bias = normal.inv_cdf(float((samples < effect).mean()))
    ends = [
        np.quantile(samples, normal.cdf(bias + (bias + z) / (1 - pull * (bias + z)))) for z in (-1.959964, 1.959964)
    ]
    assert found.low is not None and found.high is not None
    width = ends[1] - ends[0]
    assert abs(found.low - ends[0]) < 0.03 * width and abs(found.high - ends[1]) < 0.03 * width
    plain = np.quantile(samples, [0.025, 0.975])  # percentiles are another interval, by far more than that
    assert max(abs(plain - ends)) > 0.06 * width
    swaps = np.array(list(itertools.product([1, -1], repeat=count))) @ (a - b)
    assert found.p == pytest.approx(2 * min((swaps <= (a - b).sum() + 1).mean(), (swaps >= (a - b).sum() - 1).mean()))


def test_a_hundred_comparisons_still_show_what_is_certain() -> None:
    """Permutations are enough in number for the smallest probability that so many comparisons ask for."""
    a = costs(25)
    noise = np.random.default_rng(7).normal(1.1, 0.01, 25)
    found = judge([compare(("A", a), ("B", a * noise), "tokens/s", family=100)] * 100)
    assert {one.outcome for one in found} == {"better"}


def test_many_comparisons_need_more_requests() -> None:
    """Seven requests can be swapped in 128 ways: among nine comparisons no probability is small enough."""
    found = judge([compare(("A", costs(7)), ("B", costs(7) * 2), "tokens/s", family=9)] * 9)
    assert {one.outcome for one in found} == {"too few"}
    assert found[0].verdict.endswith("cannot tell; at least 9 are needed")
    a, b = costs(30), costs(30) * np.random.default_rng(1).normal(1, 0.05, 30)
    alone, among = (compare(("A", a), ("B", b), "tokens/s", family=family).more_requests for family in (1, 9))
    assert alone is not None and among is not None
    # (z of 0.05 / 9 / 2 + z of 0.8)^2 over (z of 0.05 / 2 + z of 0.8)^2
    assert (30 + among) / (30 + alone) == pytest.approx((2.7729 + 0.8416) ** 2 / (1.9600 + 0.8416) ** 2, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_holm(p: list[float]) -> None:
    """Against the definition: reject the smallest while it is at most level / (those left)."""
    for level in (0.01, 0.05, 0.3):
        rejected, left = set(), len(p)
        for place in sorted(range(len(p)), key=lambda i: p[i]):
            if p[place] * left > level:
                break
            rejected.add(place)
            left -= 1
        assert {i for i, value in enumerate(holm(p)) if value <= level} == rejected


def test_only_the_same_requests_compare() -> None:
    with pytest.raises(StudyError, match="same requests"):
        compare(("A", np.ones(3)), ("B", np.ones(4)), "tokens/s")
    with pytest.raises(StudyError, match="same requests"):
        compare(("A", np.ones(0)), ("B", np.ones(0)), "tokens/s")


def test_the_same_costs_give_the_same_answer() -> None:
    a, b = costs(15), costs(15, 2)
    assert compare(("A", a), ("B", b), "tokens/s") == compare(("A", a), ("B", b), "tokens/s")
