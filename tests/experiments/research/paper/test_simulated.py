"""Table 2 through the simulator: known machines are found again, and faster links are never slower."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.research.paper.published import FITTED, LAYERS, MACHINES, TABLE2, Bits, Machine, Row
from experiments.research.paper.simulated import Simulated, fit_simulated, plan_of
from experiments.research.paper.stated_routing import write_routing
from tracekit.errors import StudyError
from tracekit.trace import Trace

T4 = MACHINES[-1]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("simulated") / "routing.trace"
    stated = {2: 0.375, 4: 0.61}
    return write_routing(path, hit_ratio=stated, recall={1: 0.45, 2: 0.8}, tokens=64, layers=LAYERS, experts=8, seed=3)


@pytest.mark.parametrize("machine", MACHINES, ids=[m.name for m in MACHINES])
def test_a_known_machine_is_found_again(trace: Trace, machine: Machine) -> None:
    truth = Simulated(machine, link=0.6 * machine.raw_link, overhead=5e-3)
    table: dict[tuple[Bits, Row], float] = {
        (bits, row): truth.tokens_per_second(trace, bits, row) for bits, row in FITTED
    }
    found = fit_simulated(trace, machine, table)
    assert found.link == pytest.approx(truth.link, rel=1e-4)
    assert found.overhead == pytest.approx(truth.overhead, rel=1e-3)
    assert found.tokens_per_second(trace, 3, "full") == pytest.approx(
        truth.tokens_per_second(trace, 3, "full"), rel=1e-3
    )


def test_a_faster_link_is_never_slower_without_preloading(trace: Trace) -> None:
    for row in ("no-preload", "no-cache"):
        speeds = [Simulated(T4, rate * 1e9, 5e-3).tokens_per_second(trace, 2, row) for rate in (2, 4, 8, 12, 16, 64)]
        assert speeds == sorted(speeds)
        assert speeds[0] < speeds[-1]


def test_the_cache_and_guesses_make_it_faster(trace: Trace) -> None:
    machine = Simulated(T4, 10e9, 5e-3)
    speeds = [machine.tokens_per_second(trace, 2, row) for row in ("no-cache", "no-preload", "full")]
    assert speeds == sorted(set(speeds))
    assert machine.tokens_per_second(trace, 2, "full", guesses=1) < machine.tokens_per_second(trace, 2, "full", 2)


def test_rows_that_no_machine_has_are_refused(trace: Trace) -> None:
    with pytest.raises(StudyError, match="no link rate"):
        fit_simulated(trace, T4, {(2, "no-preload"): 1.0, (2, "no-cache"): 2.0})
    with pytest.raises(StudyError, match="exactly two"):
        fit_simulated(trace, T4, {(2, "no-preload"): 1.0})
    with pytest.raises(StudyError, match="whole layers"):
        plan_of(T4, 2, "naive")


def test_table_2_is_complete() -> None:
    assert all(len(speeds) == len(MACHINES) for rows in TABLE2.values() for speeds in rows.values())
    assert replace(T4, pcie=4).raw_link == pytest.approx(2 * T4.raw_link)


def test_plans_are_the_papers(tmp_path: Path) -> None:
    plan = plan_of(MACHINES[2], 3, "full", 1)
    assert plan.cache.capacity == "2/layer"
    assert (plan.prefetch.predictor, plan.prefetch.count, plan.prefetch.staging) == ("gate", 1, 4)
    assert plan.weights.experts == "hqq-3bit"
