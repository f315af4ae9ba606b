"""Table 2 with a trace of one's own: its own hit ratios and recall, and what is no Mixtral routing is refused."""

from pathlib import Path

import numpy as np
import pytest

from experiments.research.paper.__main__ import run
from experiments.research.paper.published import HIT_RATIO, RECALL
from experiments.research.paper.stated_routing import write_routing
from experiments.research.paper.table2 import reproduce, routing_of
from experiments.research.paper.text_tables import TABLES
from tests.helpers.command_line import assert_one_line
from tests.helpers.traces import make_trace
from tracekit.trace import Trace


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Routing with the stated statistics, short, as if it were somebody's recording."""
    path = tmp_path_factory.mktemp("own") / "mixtral.trace"
    return write_routing(path, hit_ratio=HIT_RATIO, recall=RECALL, tokens=48, layers=32, experts=8, seed=3)


def test_a_trace_has_its_own_statistics(own: Trace) -> None:
    routing = routing_of(own)
    assert routing.hit_ratio == pytest.approx(HIT_RATIO, abs=0.05)
    assert routing.recall == pytest.approx(RECALL, abs=0.03)
    assert routing.stated is own and routing.ends == {}


def test_every_table_is_made_of_it(own: Trace) -> None:
    result = reproduce(own)
    assert result.routing == str(own.path)
    assert result.hit_ratio == routing_of(own).hit_ratio
    assert not any(p.variant.startswith("recall") for cell in result.cells for p in cell.predictions)
    assert not any("hit ratios" in case.assumption for case in result.sensitivity)
    for cell in result.cells:
        if cell.kind == "fitted":
            assert abs(cell.of("simulator").error) < 1e-4 and abs(cell.of("two-term").error) < 1e-9
    for build in TABLES.values():
        assert build(result).rows


def test_other_routing_is_refused(own: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = np.tile(np.arange(2, dtype=np.uint16), (4, 32, 1))
    make_trace(tmp_path / "small.trace", chosen[:, :2], num_experts=8)
    make_trace(tmp_path / "blind.trace", chosen, num_experts=8)
    make_trace(tmp_path / "prompt.trace", chosen, num_experts=8, phase=0, lookahead={1: np.zeros((4, 31, 8))})
    faults = {"small": "top-2 of 8 experts in 2 MoE layers", "blind": "--lookahead 1", "prompt": "no decode steps"}
    for name, said in faults.items():
        code = run(["table2", "--trace", str(tmp_path / f"{name}.trace")])
        captured = capsys.readouterr()
        assert_one_line(code, captured.out, captured.err, said)
    code = run(["table2", "--trace", str(own.path), "--write", str(tmp_path / "page.md")])
    captured = capsys.readouterr()
    assert_one_line(code, captured.out, captured.err, "leave out --trace")
