"""Runs steps one after the other, each in a process of its own with its own time limit; every result is kept at once.

A step that fails, hangs or takes the process down is recorded and passed over. What is done is not done again.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

MOST_BYTES = 15 << 20  # of a file of results
Found = dict[str, Any]
"""What a step found: names and values that JSON knows."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to find out: `run()` says what, within `limit_s` seconds."""

    name: str
    limit_s: float
    run: Callable[[], Found]


class Results:
    """The results of a part, by step, in one file that is whole at any moment."""

    def __init__(self, path: Path, head: Found) -> None:
        self.path = path
        self.steps: dict[str, Found] = json.loads(path.read_text())["steps"] if path.exists() else {}
        self.head = head

    def is_done(self, name: str) -> bool:
        return self.steps.get(name, {}).get("outcome") == "done"

    def keep(self, name: str, found: Found) -> None:
        """Write the result of a step, beside all others."""
        if len(json.dumps(found)) > MOST_BYTES // 8:
            found = {"outcome": "failed", "error": "its result is too large to keep"}
        self.steps[name] = found
        text = json.dumps(self.head | {"steps": self.steps}, indent=1)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(text)
        temporary.replace(self.path)


def run_steps(steps: Sequence[Step], results: Results, seconds: float) -> Iterator[tuple[str, str]]:
    """Run what is not done yet, what has not been tried first, until `seconds` are over; each step and its outcome."""
    end = monotonic() + seconds
    left = [step for step in steps if not results.is_done(step.name)]
    for step in sorted(left, key=lambda step: step.name in results.steps):
        room = end - monotonic()
        if room < min(step.limit_s / 3, 20):
            yield step.name, "left for another time"
            continue
        start = monotonic()
        found = isolated(step.run, min(step.limit_s, room))
        results.keep(step.name, found | {"seconds": round(monotonic() - start, 1)})
        yield step.name, found["outcome"] + (f": {found['error']}" if "error" in found else "")


def isolated(run: Callable[[], Found], limit_s: float) -> Found:
    """What `run` finds in a process of its own, which is ended with all that it started after `limit_s`.

    The process is forked: nothing has to be imported again. Nothing here may have touched CUDA.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        process = multiprocessing.get_context("fork").Process(target=_child, args=(run, answer))
        process.start()
        process.join(limit_s)
        late = process.is_alive()
        if late and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if answer.exists():
            found: Found = json.loads(answer.read_text())
            return found
        why = f"stopped after {limit_s:.0f} s" if late else f"the process ended with {process.exitcode}"
        return {"outcome": "failed", "error": why}


def _child(run: Callable[[], Found], answer: Path) -> None:
    os.setsid()
    try:
        found = {"outcome": "done", **run()}
    except BaseException as error:  # whatever it is, the day goes on
        lines = " ".join(str(error).split())[:500]
        found = {
            "outcome": "failed",
            "error": f"{type(error).__name__}: {lines}",
            "where": traceback.format_exc()[-3000:],
        }
    temporary = answer.with_suffix(".partial")
    temporary.write_text(json.dumps(found, default=float))
    temporary.replace(answer)
    sys.stdout.flush()
    os._exit(0)  # what is left of CUDA's and of torch's threads is not waited for
