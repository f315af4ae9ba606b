"""`tracekit replay --decisions`: its own events read back say the same, and what is no such file is one line."""

from pathlib import Path

import msgspec
import polars as pl
import pytest

from tests.helpers.command_line import Call, assert_one_line
from tests.helpers.traces import prompted_trace
from tracekit.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return prompted_trace(tmp_path / "t.trace")


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
