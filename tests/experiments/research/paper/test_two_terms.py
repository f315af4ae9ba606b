"""The two-term model: fits with known answers, published reference values, and what must hold for any machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.weights import WeightFormat
from engine.shapes import load_shape
from experiments.research.paper.bits import GB, GIB, Reading, readings, table1_bits, table1_unit_params
from experiments.research.paper.published import (
    BITS,
    EXPERT_FORMAT,
    HIT_RATIO,
    MACHINES,
    MODEL_PARAMS,
    RECALL,
    SHAPE,
    published,
)
from experiments.research.paper.table2 import two_terms
from experiments.research.paper.two_terms import TwoTerms, fit, largest_hit_ratio, loads_per_token, preloaded_seconds
from tracekit.errors import StudyError

rates = st.floats(1e9, 60e9)
overheads = st.floats(0.01, 2.0)
sizes = st.floats(1e7, 4e8)
hit_ratios = st.floats(0.0, 0.95)


@given(rates, overheads, st.lists(st.floats(1e8, 1e11), min_size=2, max_size=6, unique=True))
def test_a_fit_finds_the_machine_that_made_the_rows(rate: float, overhead: float, loaded: list[float]) -> None:
    if max(loaded) - min(loaded) < 1e8:
        loaded = [*loaded, max(loaded) + 1e9]
    found = fit(loaded, [overhead + size / rate for size in loaded])
    assert found.link == pytest.approx(rate, rel=1e-6)
    assert found.overhead == pytest.approx(overhead, rel=1e-6, abs=1e-6)


def test_a_fit_of_three_rows_is_least_squares() -> None:
    # Times 1, 2, 4 at 0, 1, 2 bytes: slope 1.5, intercept 5/6.
    found = fit([0, 1, 2], [1, 2, 4])
    assert (found.link, found.overhead) == (pytest.approx(1 / 1.5), pytest.approx(5 / 6))


@pytest.mark.parametrize("rows", [([1e9], [1.0]), ([1e9, 1e9], [1.0, 2.0]), ([1e9, 2e9], [2.0, 1.0])])
def test_rows_that_determine_no_machine_are_refused(rows: tuple[list[float], list[float]]) -> None:
    with pytest.raises(StudyError):
        fit(*rows)


def test_reference_fit() -> None:
    """An independent fit with 2.93 and 3.6 bits per parameter gave these rates and 3-bit errors within 6 %."""
    reading = Reading("reference", {2: 2.93, 3: 3.6})
    found = [two_terms(m, reading).link / 1e9 for m in MACHINES]
    assert found == pytest.approx([25.5, 21.0, 9.7, 11.6], abs=0.1)
    for m in MACHINES[:3]:
        for row in ("no-preload", "no-cache"):
            seconds = two_terms(m, reading).seconds(loads_per_token(row, HIT_RATIO[m.cache]), reading.expert_bytes(3))
            assert abs(1 / seconds / published(3, row, m.name) - 1) < 0.061


@given(rates, st.floats(1.0, 4.0), overheads, sizes, hit_ratios)
def test_a_faster_link_is_never_slower_without_preloading(
    rate: float, factor: float, overhead: float, size: float, hits: float
) -> None:
    for row in ("no-preload", "no-cache", "naive"):
        loads = loads_per_token(row, hits)
        slow, fast = (TwoTerms(r, overhead).seconds(loads, size) for r in (rate, factor * rate))
        assert fast <= slow


@given(rates, overheads, sizes, st.floats(0.25, 0.9), st.sampled_from([1, 2]))
def test_preloading_never_beats_the_overhead_nor_the_link(
    rate: float, overhead: float, size: float, hits: float, guesses: int
) -> None:
    terms = TwoTerms(rate, overhead)
    seconds = preloaded_seconds(terms, size, hit_ratio=hits, cache=4, guesses=guesses, recall=RECALL[guesses])
    needed = loads_per_token("full", hits) * size / rate
    assert seconds >= max(overhead, needed) * (1 - 1e-9)


def test_preloading_with_known_answers() -> None:
    # 32 layers, copies of 1 ms; 2 misses per layer at hit ratio 0, and a cache of nothing makes every guess a copy.
    def seconds(overhead: float, guesses: int, recall: float) -> float:
        terms = TwoTerms(1e9, overhead)
        return preloaded_seconds(terms, 1e6, hit_ratio=0.0, cache=0, guesses=guesses, recall=recall)

    assert seconds(1.0, 2, 1.0) == pytest.approx(1.0)  # all hidden
    assert seconds(0.0, 2, 1.0) == pytest.approx(0.064)  # nothing to hide behind
    assert seconds(1.0, 2, 0.5) == pytest.approx(1.032)  # half of the misses come late
    assert seconds(0.0, 2, 0.5) == pytest.approx(0.096)  # and wrong guesses take the link


def test_largest_hit_ratio_is_where_the_overhead_equals_the_full_row() -> None:
    t4 = [1 / published(2, row, "t4") for row in ("no-cache", "no-preload", "full")]
    limit = largest_hit_ratio(*t4)
    load = (t4[0] - t4[1]) / limit  # seconds of all loads
    assert t4[0] - load == pytest.approx(t4[2])
    assert limit < 0.60


def test_bits_are_those_of_the_stored_formats() -> None:
    used = readings()[0]
    shape = load_shape(SHAPE)
    for bits in BITS:
        assert used.expert_bytes(bits) == pytest.approx(
            shape.expert_bytes(WeightFormat.parse(EXPERT_FORMAT[bits])), rel=1e-4
        )


def test_table_1_counts_gibibytes() -> None:
    assert table1_unit_params(GIB) == pytest.approx(MODEL_PARAMS, rel=1e-3)
    assert abs(table1_unit_params(GB) / MODEL_PARAMS - 1) > 0.05
    assert table1_bits(2, GB) == pytest.approx(2.9, abs=0.05)
