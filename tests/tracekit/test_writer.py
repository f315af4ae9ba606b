"""A writer may die at any moment: what it flushed stays, and resuming gives an unbroken run's bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.traces import contents, flip, make_manifest, random_experts
from tracekit.errors import TraceError
from tracekit.manifest import Manifest
from tracekit.trace import Trace
from tracekit.writer import TraceWriter

SHARDS, ROWS = 2, 4
MANIFEST = make_manifest(layers=2, experts=8, top_k=2)


def shard(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "step": np.arange(ROWS) + number * ROWS,
        "request": number,
        "position": np.arange(ROWS),
        "phase": 1,
        "token_id": np.arange(ROWS),
        "experts": random_experts(rng, ROWS),
        "weights": rng.random((ROWS, 2, 2)),
        "logits": rng.normal(size=(ROWS, 2, 8)),
        "lookahead": {1: rng.normal(size=(ROWS, 1, 8))},
    }


def record(path: Path, *, resume: bool = False) -> None:
    """A recorder as it should be: it goes on where the writer says, and flushes after every request."""
    with TraceWriter(path, MANIFEST, resume=resume) as writer:
        for number in range(writer.next_request, SHARDS):
            assert writer.next_step == number * ROWS
            writer.append(**shard(number))
            writer.flush()


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the writer's may run file operations after it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, operation: int) -> None:
    """Die just before the n-th sync or rename from now on."""
    done = 0

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == operation:
                raise Killed
            done += 1
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", deadly(os.fsync))
    monkeypatch.setattr(Path, "replace", deadly(Path.replace))


def test_death_at_every_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "whole.trace")
    whole = Trace.open(tmp_path / "whole.trace")
    deaths = 0
    for operation in range(1000):
        path = tmp_path / f"{operation}.trace"
        with monkeypatch.context() as patch:
            kill_at(patch, operation)
            try:
                record(path)
                break
            except Killed:
                deaths += 1
        if (path / "manifest.json").exists():
            trace = Trace.open(path, verify=True)
            assert trace.tokens in (0, ROWS, 2 * ROWS)
            np.testing.assert_array_equal(trace.experts, whole.experts[: trace.tokens])
        if not (path / "manifest.json").exists() or not trace.manifest.complete:
            record(path, resume=True)
        assert contents(path) == contents(whole.path)
    # Sync, rename, sync the directory: of two manifests, and of three files and a manifest a shard.
    assert deaths == 3 * (2 + 4 * SHARDS)


def test_files_reach_the_disk_before_their_names_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing power must not leave a name without its content, or a manifest without its shards."""
    happened: list[str] = []
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        happened.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", lambda _: happened.append("sync"))
    monkeypatch.setattr(Path, "replace", replace)
    record(tmp_path / "a.trace")
    assert happened[::3] == happened[2::3] == ["sync"] * (len(happened) // 3)
    first = ["routing-00000.parquet", "logits-00000.safetensors", "lookahead-1-00000.safetensors"]
    assert happened[1::3][:5] == ["manifest.json", *first, "manifest.json"]


def test_sigkill_leaves_the_finished_shards(tmp_path: Path) -> None:
    """The real thing: a process killed while it writes."""
    program = """
import sys
from pathlib import Path
from tests.tracekit.test_writer import MANIFEST, shard
from tracekit.writer import TraceWriter
writer = TraceWriter(Path(sys.argv[1]), MANIFEST)
for number in range(100000):
    writer.append(**shard(number))
    writer.flush()
    print(number, flush=True)
"""
    path = tmp_path / "a.trace"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    arguments = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGKILL)
    assert seen[-1] == "3\n"
    trace = Trace.open(path, verify=True)
    assert not trace.manifest.complete
    assert trace.tokens >= 4 * ROWS and trace.tokens % ROWS == 0
    for number in range(trace.tokens // ROWS):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        np.testing.assert_array_equal(trace.experts[rows], shard(number)["experts"])
    with TraceWriter(path, MANIFEST, resume=True) as writer:
        assert writer.rows == trace.tokens
        assert writer.next_request == trace.tokens // ROWS
    listed = {shard.name for shard in Trace.open(path, verify=True).manifest.shards}
    assert {entry.name for entry in path.iterdir()} == listed | {"manifest.json"}


def test_an_exception_loses_only_the_open_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with pytest.raises(ZeroDivisionError), TraceWriter(path, MANIFEST) as writer:
        writer.append(**shard(0))
        writer.flush()
        writer.append(**shard(1))
        raise ZeroDivisionError
    trace = Trace.open(path)
    assert (trace.tokens, trace.manifest.complete) == (ROWS, False)


def test_counts_and_places(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", MANIFEST) as writer:
        assert (writer.rows, writer.next_step, writer.next_request) == (0, 0, 0)
        writer.append(**shard(0) | {"step": 5, "request": [3, 1, 3, 1]})
        assert (writer.rows, writer.next_step, writer.next_request) == (ROWS, 6, 4)
        writer.flush()
        writer.append(**shard(0) | {"step": [6, 6, 8, 8], "request": 1})
        assert (writer.rows, writer.next_step, writer.next_request) == (2 * ROWS, 9, 4)
    manifest = Trace.open(tmp_path / "a.trace").manifest
    assert (manifest.tokens, manifest.requests, manifest.steps) == (2 * ROWS, 2, 3)


def test_rows_are_copied(tmp_path: Path) -> None:
    """A recorder reuses its buffers."""
    columns = shard(0) | {"experts": random_experts(np.random.default_rng(5), ROWS).astype(np.uint16)}
    expected = columns["experts"].copy()
    with TraceWriter(tmp_path / "a.trace", MANIFEST) as writer:
        writer.append(**columns)
        columns["experts"][:] = 0
    np.testing.assert_array_equal(Trace.open(tmp_path / "a.trace").experts, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts": np.zeros((ROWS, 2, 3), dtype=int)}, "expected [rows, 2, 2]"),
        ({"experts": np.full((ROWS, 2, 2), 8)}, "row 0, MoE layer 0: expert 8 of 8"),
        ({"experts": np.full((ROWS, 2, 2), -1)}, "out of range"),
        ({"experts": np.full((ROWS, 2, 2), 70_000)}, "out of range"),
        ({"experts": np.ones((ROWS, 2, 2))}, "expected integers"),
        ({"experts": np.ones((ROWS, 2, 2), dtype=int)}, "row 0, MoE layer 0: expert 1 is listed twice"),
        ({"step": [0, 2, 1, 3]}, "row 2: step 1"),
        ({"step": [0, 1]}, "step has shape [2], expected [4]"),
        ({"step": -1}, "step -1 is negative"),
        ({"step": 2**31}, "out of range"),
        ({"request": -1}, "request -1"),
        ({"position": -5}, "position -5"),
        ({"phase": 2}, "phase 2"),
        ({"token_id": -2}, "token_id -2"),
        ({"weights": np.full((ROWS, 2, 2), np.nan)}, "weight nan is not finite"),
        ({"weights": np.zeros((ROWS, 2))}, "expected floats [4, 2, 2]"),
        ({"logits": np.zeros((ROWS, 2, 7))}, "expected floats [4, 2, 8]"),
        ({"lookahead": {2: np.zeros((ROWS, 0, 8))}}, "a lookahead of 2"),
        ({"lookahead": {1: np.zeros((ROWS, 2, 8))}}, "expected floats [4, 1, 8]"),
    ],
)
def test_rows_that_no_trace_may_hold(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with TraceWriter(tmp_path / "a.trace", MANIFEST) as writer:
        with pytest.raises(TraceError) as error:
            writer.append(**shard(0) | change)
        assert words in str(error.value)
        assert writer.rows == 0
        writer.append(**shard(0))  # a refused append leaves the writer as it was
    assert Trace.open(tmp_path / "a.trace", verify=True).tokens == ROWS


def test_steps_do_not_go_back_across_appends_or_flushes(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", MANIFEST) as writer:
        writer.append(**shard(0) | {"step": 4})
        with pytest.raises(TraceError, match="step 3"):
            writer.append(**shard(0) | {"step": 3})
        writer.append(**shard(0) | {"step": 4})  # a step may come in several appends,
        writer.flush()
        with pytest.raises(TraceError, match="step 4"):
            writer.append(**shard(0) | {"step": 4})  # but not in several shards


def test_all_rows_carry_the_same(tmp_path: Path) -> None:
    bare = {name: value for name, value in shard(1).items() if name not in ("weights", "logits", "lookahead")}
    with TraceWriter(tmp_path / "a.trace", MANIFEST) as writer:
        writer.append(**shard(0))
        with pytest.raises(TraceError, match="rows before carried logits, lookahead-1, weights"):
            writer.append(**bare)


def refused(path: Path, manifest: Manifest = MANIFEST, *, resume: bool = False) -> str:
    with pytest.raises(TraceError) as error:
        TraceWriter(path, manifest, resume=resume)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_written_or_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    record(path)
    assert "exists: choose another name" in refused(path)
    assert "complete already" in refused(path, resume=True)
    assert "there is no directory" in refused(tmp_path / "no" / "a.trace")
    (tmp_path / "file").write_text("mine")
    assert "exists" in refused(tmp_path / "file")
    assert "is not a trace" in refused(tmp_path / "file", resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    assert "has no manifest.json" in refused(tmp_path / "photos", resume=True)
    assert contents(tmp_path / "photos") == {"cat.jpg": b"meow"}
    assert "top_k is 99" in refused(tmp_path / "b.trace", make_manifest(top_k=99))
    assert not (tmp_path / "b.trace").exists()


def test_another_recording_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with pytest.raises(Killed), TraceWriter(path, MANIFEST) as writer:
        writer.append(**shard(0))
        writer.flush()
        raise Killed
    before = contents(path)
    assert "its seed differs" in refused(path, make_manifest(seed=1), resume=True)
    assert "its experts_per_layer differs" in refused(path, make_manifest(experts=9), resume=True)
    (routing,) = path.glob("routing-*")
    flip(routing, 100)
    assert "truncated or damaged" in refused(path, resume=True)
    flip(routing, 100)
    assert contents(path) == before


def test_two_writers_do_not_share_a_trace(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "a.trace"
    with TraceWriter(path, MANIFEST) as writer:
        assert "being written by another process" in refused(path, resume=True)
        writer.append(**shard(0))
    assert Trace.open(path, verify=True).tokens == ROWS


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    writer = TraceWriter(tmp_path / "a.trace", MANIFEST)
    writer.append(**shard(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TraceError, match="No space left on device"):
            writer.flush()
    writer.finish()  # space was made: nothing was lost
    assert Trace.open(tmp_path / "a.trace", verify=True).tokens == ROWS
