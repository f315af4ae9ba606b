"""The file for trace viewers: work where and when it was, arrows from load to use, the format's rules."""

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.replay.chrome_trace import COMPUTE, CPU, DISK, LINK, VISITS, events_of, write_timeline
from engine.simulator import log
from engine.simulator.timeline import CAUSES
from policies.events import BYPASS, HIT, LOAD
from tracekit.errors import TraceError

# Two layers of three experts. Visit 2 (step 7, layer 0): expert 0 is there, expert 1 is read, copied and waited for.
ROWS = np.array(
    [
        # what, begin, end, visit, key, slot, kind, engine
        [log.DENSE_PART, 100, 110, 2, -1, -1, 0, 0],
        [log.OVERHEAD_PART, 110, 115, 2, -1, -1, 0, 0],
        [log.DISK_READ, 115, 120, 2, 1, 1, LOAD, 0],
        [log.COPY, 120, 150, 2, 1, 1, log.COPY_DEMAND, 1],
        [log.COPY, 100, 119, 2, 4, 3, log.COPY_AHEAD, 0],
        [log.EXPERT, 115, 125, 2, 0, 0, HIT, 0],
        [log.WAIT, 125, 150, 2, 1, 1, CAUSES.index("demand"), 0],
        [log.EXPERT, 150, 160, 2, 1, 1, LOAD, 0],
        [log.CPU_EXPERT, 115, 170, 2, 2, -1, BYPASS, 0],
        [log.DENSE_PART, 170, 180, 3, -1, -1, 0, 0],
        [log.EXPERT, 180, 190, 3, 1, 1, HIT, 0],
    ],
    np.int64,
)
STEP_IDS = [5, 7]


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return events_of(ROWS, 2, 3, CAUSES, STEP_IDS)


def test_every_row_is_one_slice_in_its_lane(events: list[dict[str, Any]]) -> None:
    lane = {log.COPY: LINK, log.CPU_EXPERT: CPU, log.DISK_READ: DISK}
    expected = [
        (lane.get(int(row[log.WHAT]), COMPUTE) + int(row[log.ENGINE]), row[log.BEGIN] / 1000, row[log.END] / 1000)
        for row in ROWS
    ]
    found = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] != VISITS]
    np.testing.assert_allclose(found, expected)


def test_visits_span_their_work_and_name_the_traces_own_steps(events: list[dict[str, Any]]) -> None:
    spans = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == VISITS]
    assert spans == [("step 7 layer 0", 0.1, 0.07), ("step 7 layer 1", 0.17, 0.02)]


def test_names_say_what_was_done(events: list[dict[str, Any]]) -> None:
    names = [e["name"] for e in events if e["ph"] == "X"]
    assert (
        "wait: demand" in names and "demand copy L0 E1" in names and "prefetch L1 E1" in names and "read L0 E1" in names
    )
    came = {e["args"]["came"] for e in events if e["ph"] == "X" and "came" in e["args"]}
    assert came == {"kept", "loaded", "bypass"}


def test_one_arrow_from_a_copy_to_its_first_use(events: list[dict[str, Any]]) -> None:
    """Expert 1's copy is used twice; the prefetched one never."""
    flows = [e for e in events if e["ph"] in "sf"]
    assert [(e["ph"], e["tid"], e["ts"]) for e in flows] == [("s", LINK + 1, 0.149), ("f", COMPUTE, 0.15)]
    assert flows[0]["id"] == flows[1]["id"] and flows[1]["bp"] == "e"


def test_the_rules_of_the_format_hold(events: list[dict[str, Any]]) -> None:
    """Trace Event Format: required fields, and slices of one lane are nested or apart, which viewers rely on."""
    lanes = {e["tid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= event.keys() and event["tid"] in lanes
        assert event["pid"] > 0 and event["tid"] > 0, "0 is the idle process, and its thread"
        if event["ph"] != "M":
            assert event["ts"] >= 0
    for lane in lanes:
        slices = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == lane)
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(slices)), lane
    flows = Counter((e["id"], e["ph"]) for e in events if e["ph"] in "sf")
    assert set(flows.values()) == {1}


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_files_are_whole_and_the_same_every_time(name: str, tmp_path: Path, events: list[dict[str, Any]]) -> None:
    path = tmp_path / name
    write_timeline(path, events, {"trace": "t"})
    first = path.read_bytes()
    write_timeline(path, events, {"trace": "t"})
    assert path.read_bytes() == first
    read = json.loads(gzip.decompress(first) if name.endswith(".gz") else first)
    assert read["traceEvents"] == json.loads(json.dumps(events)) and read["displayTimeUnit"] == "ns"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "none" / "t.json"):
        with pytest.raises(TraceError, match="cannot write"):
            write_timeline(target, [], {})


def test_nothing_logged_is_a_file_of_lanes() -> None:
    assert {e["ph"] for e in events_of(np.zeros((0, log.COLUMNS), np.int64), 2, 3, CAUSES, [])} == {"M"}
