"""Steps of the day: a failure, a hang, a death are recorded and passed over; what is done is not done again."""

import json
import os
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")
from experiments.research.gpu_day.carry import repack
from experiments.research.gpu_day.page import write_page
from experiments.research.gpu_day.runner import Found, Results, Step, isolated, run_steps

HEAD: Found = {"part": 1, "command": "x", "date": "today", "machine": {"device name": "none"}}


def good(path: Path) -> Found:
    with path.open("a") as file:
        file.write("x")
    return {"rows": [{"bytes": 1, "us": [1.0, 2.5]}, {"bytes": 2}], "speed": {"ours": 1.23456}}


def bad() -> Found:
    raise ValueError("two\nlines | and a bar")


def hanging(started: Path) -> Found:
    started.write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def dead() -> Found:
    os._exit(3)


def test_whatever_a_step_does_the_others_run(tmp_path: Path) -> None:
    ran, started, file = tmp_path / "ran", tmp_path / "started", tmp_path / "gpu-day-part1.json"
    steps = [
        Step("dies", 20, dead),
        Step("hangs", 2, partial(hanging, started)),
        Step("fails", 20, bad),
        Step("works", 20, partial(good, ran)),
    ]
    outcomes = {}
    for name, outcome in run_steps(steps, Results(file, HEAD), 60):
        outcomes[name] = outcome
        assert name in json.loads(file.read_text())["steps"]  # kept before the next one begins
    assert outcomes == {
        "dies": "failed: the process ended with 3",
        "hangs": "failed: stopped after 2 s",
        "fails": "failed: ValueError: two lines | and a bar",
        "works": "done",
    }
    assert not Path(f"/proc/{started.read_text()}").exists()
    told = json.loads(file.read_text())
    assert "raise ValueError" in told["steps"]["fails"]["where"]
    page = write_page(tmp_path, [file, tmp_path / "none.json"]).read_text()
    assert "**Failed**: stopped after 2 s" in page and "| 1 | 1 / 2.5 |" in page and "ours 1.235" in page

    again = [name for name, _ in run_steps(steps[::-1], Results(file, HEAD), 60)]
    assert again == ["fails", "hangs", "dies"] and ran.read_text() == "x"


def test_a_part_ends_in_time_with_what_it_has(tmp_path: Path) -> None:
    steps = [Step("hangs", 60, partial(hanging, tmp_path / "a")), Step("works", 60, partial(good, tmp_path / "b"))]
    start = time.monotonic()
    found = dict(run_steps(steps, Results(tmp_path / "r.json", HEAD), 21))
    assert time.monotonic() - start < 30
    assert found == {"hangs": "failed: stopped after 21 s", "works": "left for another time"}
    # What has not been tried goes first.
    assert next(run_steps(steps, Results(tmp_path / "r.json", HEAD), 60)) == ("works", "done")


def test_a_result_too_large_is_not_kept(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", HEAD)
    results.keep("large", isolated(lambda: {"text": "x" * 3_000_000}, 20))
    assert results.steps["large"]["outcome"] == "failed" and (tmp_path / "r.json").stat().st_size < 10_000


def test_a_wheel_is_packed_smaller_and_the_same(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    content = {"a/b.so": bytes(range(256)) * 4000, "a-1.dist-info/RECORD": b"a/b.so,,\n"}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    before = wheel.stat().st_size
    repack(wheel)
    with zipfile.ZipFile(wheel) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == content
    assert wheel.stat().st_size < before and list(tmp_path.iterdir()) == [wheel]
