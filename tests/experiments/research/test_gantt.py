"""The picture of a timeline: one bar per piece of work, where and when it was; a file that is a picture."""

from pathlib import Path

import numpy as np
import pytest

from engine.replay.bars import bars
from experiments.research.gantt import main, picture
from tests.engine.replay.test_chrome_trace import ROWS
from tests.helpers.traces import make_trace, random_experts


def test_bars_are_the_rows_in_milliseconds() -> None:
    found = bars(ROWS, 3)
    assert len(found) == len(ROWS)
    assert found[0] | {"middle": 0} == {
        "lane": "compute", "kind": "dense part", "label": "", "begin": 0.0, "end": 10 / 1e6, "middle": 0
    }  # fmt: skip
    assert [bar["lane"] for bar in found].count("link") == 2
    assert [(bar["lane"], bar["label"]) for bar in found if bar["kind"] == "wait"] == [("compute", "demand")]
    assert {bar["lane"] for bar in found} == {"compute", "link", "disk", "CPU"}


def test_lanes_without_work_are_not_drawn() -> None:
    spec = picture(ROWS[ROWS[:, 0] == 0], 2, 3, "t").to_dict()
    assert spec["height"] == 60 and spec["title"]["text"] == "t"


def test_the_command_draws_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")

    experts = random_experts(np.random.default_rng(0), 12, layers=3)
    trace = make_trace(
        tmp_path / "t.trace", experts, num_experts=8, expert_bytes=[10**6] * 3, expert_params=[10**6] * 3
    )
    (tmp_path / "p.toml").write_text('cache.capacity = "2/layer"\n')
    output = tmp_path / "t.png"
    arguments = [str(trace.path), "--plan", str(tmp_path / "p.toml"), "--hardware", "t4", "--output", str(output)]
    assert main([*arguments, "--steps", "5:6"]) == 0
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
