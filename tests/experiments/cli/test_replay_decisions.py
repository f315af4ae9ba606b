"""`tracekit replay --decisions`: its own events read back say the same, and what is no such file is one line."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """A prompt of 6 tokens and 30 decode steps, numbered from 100; 3 layers, top-2 of 8, with lookahead."""
    rng = np.random.default_rng(0)
    return make_trace(
        tmp_path / "t.trace",
        random_experts(rng, tokens=36, layers=3),
        num_experts=8,
        step=np.concatenate([[100] * 6, np.arange(101, 131)]),
        phase=[0] * 6 + [1] * 30,
        lookahead={1: rng.normal(size=(36, 2, 8))},
        expert_bytes=[3_000_000] * 3,
        expert_params=[1_500_000] * 3,
    )


OPTIONS = ["--capacity", "3/layer", "--prefetch", "gate", "--hardware", "rtx3060"]


def test_a_replay_of_its_own_events_says_the_same(call: Call, trace: Trace, tmp_path: Path) -> None:
    code, out, err = call("replay", trace.path, *OPTIONS, "--events", tmp_path / "e.parquet", "--json")
    assert code == 0, err
    own = msgspec.json.decode(out)
    code, out, err = call("replay", trace.path, "--decisions", tmp_path / "e.parquet", *OPTIONS[4:], "--json")
    assert code == 0, err
    read = msgspec.json.decode(out)
    assert read["provenance"]["decisions"]["file"] == str(tmp_path / "e.parquet")
    assert read["regret"] is None and own["regret"] is not None
    for name in ("time", "phases", "bounds", "estimates", "hits", "warnings"):
        assert read[name] == own[name], name
    assert read["provenance"]["plan"] == own["provenance"]["plan"]


def test_what_is_no_such_file_is_refused(call: Call, trace: Trace, tmp_path: Path) -> None:
    pl.DataFrame({"visit": [0], "kind": ["hit"]}).write_parquet(tmp_path / "few.parquet")
    (tmp_path / "text.parquet").write_text("no")
    faults = {"few": "column layer must be whole numbers", "text": "not a readable Parquet", "no": "No such"}
    for name, said in faults.items():
        assert_one_line(*call("replay", trace.path, "--decisions", tmp_path / f"{name}.parquet"), said)
    found = call("replay", trace.path, "--decisions", tmp_path / "few.parquet", "--policy", "lru", "--staging", "2")
    assert_one_line(*found, "leave out --policy, --staging")
