"""Comparisons with known answers: plans that are equal, one that is better on every request, noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.statistics.comparison import Comparison, Quantity, compare, holm, judge, rate_intervals
from experiments.statistics.interval import fewest_requests
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
    assert (found.low, found.effect, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_costs_are_told_as_what_is_saved() -> None:
    found = one(costs(12), costs(12) * 4, "bytes loaded")
    assert found.effect == pytest.approx(0.75) and found.verdict == "A beats B by 75.0 % of the bytes [75.0, 75.0]"
    nothing = one(np.zeros(12), costs(12), "bytes loaded")
    assert nothing.effect == 1.0 and nothing.outcome == "better"


def test_few_requests_tell_nothing() -> None:
    assert fewest_requests(0.95) == pytest.approx(5.32, abs=0.01) and math.ceil(fewest_requests(0.99)) == 8
    for count in (1, 2, 3, 5):
        found = one(costs(count), costs(count) * 2)
        assert found.outcome == "too few"
        assert "cannot tell; at least 6 are needed" in found.verdict
        assert found.low is None and found.high is None
    assert one(costs(6), costs(6) * 2).outcome == "better"


def test_many_comparisons_ask_for_more() -> None:
    """What convinces alone need not among fifty."""
    rng = np.random.default_rng(11)
    a = costs(25)
    found = compare(("A", a), ("B", a * rng.normal(1.025, 0.04, 25)), "tokens/s")
    assert found.p < 0.05 and found.low is not None and found.low > 0
    assert judge([found])[0].outcome == "better"
    chance = [compare(("A", a), ("C", a * rng.normal(1, 0.02, 25)), "tokens/s") for _ in range(4)] * 12
    corrected = judge([found, *chance])[0]
    assert corrected.outcome == "none" and "among so many comparisons that may be chance" in corrected.verdict


def test_a_difference_that_nobody_would_act_on_is_level() -> None:
    """0.2 % on every request is certain and small; so is nothing at all, where the interval says so."""
    a = costs(40)
    noise = np.random.default_rng(4).normal(0, 0.001, 40)
    for more in (0.002, 0.0):
        found = one(a, a * (1 + more + noise))
        assert found.outcome == "level", found
        assert (
            found.verdict.startswith("A and B are level: ") and "less than the 0.5 % that would matter" in found.verdict
        )
    compared = compare(("A", a), ("B", a * (1.002 + noise)), "tokens/s", least_effect=0.001)
    assert judge([compared], least_effect=0.001)[0].outcome == "better"


def test_hit_ratios_differ_in_points() -> None:
    """Misses of 100 lookups a request: 30 against 40 are ten points of hit ratio."""
    lookups = np.full(12, 100.0)
    found = compare(("A", lookups * 0.3), ("B", lookups * 0.4), "hit ratio", lookups=lookups)
    assert (found.effect, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert judge([found])[0].verdict == "A beats B by 10.0 points of hit ratio [10.0, 10.0]"


def test_requests_that_do_not_differ_tell_nothing() -> None:
    """Of thirty requests three differ: no interval could hold, and none is given."""
    a, b = costs(30), costs(30)
    b[:3] *= 1.5
    found = one(a, b)
    assert found.outcome == "too few" and found.low is None and found.effective == 3
    assert found.verdict.endswith("but 30 requests cannot tell; only 3 of them differ; at least 6 are needed")


def test_one_long_request_counts_as_one() -> None:
    """Twelve requests, one of which holds nearly all of the tokens."""
    a = costs(12)
    a[0] *= 200
    found = one(a, a * np.random.default_rng(5).normal(1.3, 0.05, 12))
    assert found.outcome == "too few" and 1 < found.effective < 1.3
    assert "12 requests cannot tell; so unequal they count as 1.1; at least 6 are needed" in found.verdict


def test_rates_have_the_same_interval() -> None:
    """Of tokens over time; none where it would not hold."""
    times = np.stack([costs(30), costs(30, 2)])
    found = rate_intervals(np.full(30, 50), times)
    assert found is not None and found.shape == (2, 2)
    rates = 30 * 50e9 / times.sum(axis=1)
    assert (found[:, 0] < rates).all() and (rates < found[:, 1]).all()
    assert rate_intervals(np.full(5, 50), times[:, :5]) is None


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
