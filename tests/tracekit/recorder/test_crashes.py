"""Recordings that are cut off: by SIGKILL at any moment, by a full disk, by Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tracekit.trace import Trace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL, limits with setrlimit")
REPOSITORY = Path(__file__).parents[3]
MOMENTS = 50
NAMES = ("step", "request", "position", "phase", "token_id", "experts", "weights", "logits")


@pytest.fixture(scope="module")
def model(build, tokenizer, tmp_path_factory):
    """A saved tiny model and prompts for it."""
    folder = tmp_path_factory.mktemp("model")
    build("mixtral").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts = [{"id": str(number), "prompt": f"w{number % 60} w3 w{number % 7}"} for number in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    texts = ["w1"] * 8 + [" ".join(f"w{n * word % 60}" for word in range(50)) for n in range(8)]
    long = [{"id": str(number), "prompt": text} for number, text in enumerate(texts)]
    (folder / "long.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in long))
    return folder


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def rows(path: Path) -> dict[str, np.ndarray]:
    trace = Trace.open(path, verify=True)
    return {name: getattr(trace, name) for name in NAMES} | {"lookahead": trace.lookahead(1)}


def test_killed_at_any_moment_a_recording_resumes_to_the_same_rows(model, tmp_path):
    """A process is killed at random moments of a recording, from before its first byte to after its last; what it
    left is continued, and killed again or not; the rows are those of the recording that was left alone."""
    result = run("killed.py", model, tmp_path, MOMENTS)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    whole = rows(tmp_path / "whole.trace")
    assert len(report["killed"]) == MOMENTS
    for name in report["killed"]:
        resumed = rows(tmp_path / name)
        for column, array in whole.items():
            np.testing.assert_array_equal(array, resumed[column], err_msg=f"{name} {column}")
    # The moments are spread: some recordings had written nothing, some a part.
    assert sum(0 < kept < len(whole["step"]) for kept in report["kept"]) > 0
    assert report["finished"] < 0.7 * MOMENTS


def test_a_full_disk_is_one_line_and_what_was_written_can_be_read(model, tmp_path):
    result = run("limited.py", model, tmp_path / "t.trace", 8192)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "t.trace" in result.stderr
    assert "File too large" in result.stderr
    kept = Trace.open(tmp_path / "t.trace", verify=True)
    assert not kept.manifest.complete
    assert 0 < kept.tokens == len(kept.experts)


def test_ctrl_c_keeps_the_finished_shards_and_says_so_in_one_line(model, tmp_path):
    path = tmp_path / "t.trace"
    arguments = [str(model), "--prompts", str(model / "prompts.jsonl"), "--output", str(path), "--shard-rows", "1"]
    command = [sys.executable, "-c", "import sys; from experiments.cli.main import main; sys.exit(main())", "record"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [*command, *arguments, "--max-new-tokens", "50"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (path / "routing-00001.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert len(said.strip().splitlines()) == 1
    assert "continue with --resume" in said
    kept = Trace.open(path, verify=True)
    assert not kept.manifest.complete
    assert kept.tokens > 0
