"""A decoder that shouts is not heard, and one that aborts ends the process in one line that names the file."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tracekit.decoding import guarded

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors")
ABORTING = """
import ctypes, os, threading
from tracekit.decoding import guarded
with guarded("one.parquet"):
    os.write(2, b"a panic\\n")
os.write(2, b"heard\\n")
with guarded("some\\x1b/two.parquet"):
    thread = threading.Thread(target=ctypes.CDLL(None).abort)  # as polars does it, in a thread of its own
    thread.start()
    thread.join()
"""


def test_what_it_says_is_not_heard_and_an_abort_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABORTING], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    heard, line = done.stderr.splitlines()
    assert heard == "heard"
    assert line.startswith("error: some\\x1b/two.parquet is damaged")


def test_many_at_a_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever ends last lets stderr be heard again."""
    inside = threading.Barrier(3)

    def decode(number: int) -> None:
        for _ in range(50):
            with guarded(str(number)):
                pass
        with guarded(str(number)):
            inside.wait(30)
            os.write(2, b"not heard\n")
            inside.wait(30)

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    inside.wait(30)
    for thread in threads:
        thread.join()
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"
