"""Synthetic routing has the statistics it states."""

from pathlib import Path

import numpy as np
import pytest

from engine.curves.curve import curve
from experiments.research.paper.recall import recalls
from experiments.research.paper.stated_routing import position_shares, write_routing
from tracekit.errors import TraceError
from tracekit.trace import Trace

STATED = {2: 0.375, 4: 0.61}
RECALL = {1: 0.45, 2: 0.8}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return written(tmp_path_factory.mktemp("routing") / "a.trace")


def written(path: Path, seed: int = 1) -> Trace:
    return write_routing(path, hit_ratio=STATED, recall=RECALL, tokens=400, layers=32, experts=8, seed=seed)


def test_lru_hits_as_stated(trace: Trace) -> None:
    found = {int(p.capacity.partition("/")[0]): p.decode_hit_ratio for p in curve(trace, ["lru"])}
    # 25,600 lookups: a standard error of 0.003; the first uses of a cold cache are a part in a hundred.
    for size, ratio in STATED.items():
        assert found[size] == pytest.approx(ratio, abs=0.012)


def test_guesses_are_right_as_often_as_stated(trace: Trace) -> None:
    found = {p.fetched: p.recall for p in recalls(trace, [])}
    assert found[1] == pytest.approx(0.45, abs=0.01)
    assert found[2] == pytest.approx(0.80, abs=0.01)


def test_experts_are_distinct_and_evenly_used(trace: Trace) -> None:
    assert (trace.experts[:, :, 0] != trace.experts[:, :, 1]).all()
    counts = np.bincount(trace.experts.ravel(), minlength=8) / trace.experts.size
    assert counts == pytest.approx(np.full(8, 1 / 8), abs=0.02)


def test_the_same_seed_gives_the_same_bytes(trace: Trace, tmp_path: Path) -> None:
    assert written(tmp_path / "b.trace").digest == trace.digest
    assert written(tmp_path / "c.trace", seed=2).digest != trace.digest


def test_shares_sum_to_top_k_and_follow_the_hit_ratios() -> None:
    shares = position_shares(STATED, 8, 2)
    assert shares.sum() == pytest.approx(2)
    assert shares[:2].sum() / 2 == pytest.approx(STATED[2])
    assert shares[:4].sum() / 2 == pytest.approx(STATED[4])


@pytest.mark.parametrize("impossible", [{4: 0.3, 5: 0.1}, {2: 1.2}, {1: 0.3}, {8: 1.0}])
def test_impossible_hit_ratios_are_refused(impossible: dict[int, float]) -> None:
    with pytest.raises(TraceError):
        position_shares(impossible, 8, 2)
