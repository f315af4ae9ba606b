"""Kills commands with SIGKILL at random moments, runs them again, and tells what differs from a run left alone.

python -m tests.helpers.killing JOBS.json: {"folder": ..., "seed": ..., "moments": ..., "jobs": [{"name": ...,
"arguments": [...], "again": [...], "timed": [...]}]}. In the arguments `{out}` is a folder of the run's own, in which
everything that a command writes must lie. `again` is added where something is there already; `timed` names values of
JSON files that are measurements and never the same. Half of the moments are at a random operation on a file in that
folder, the others at a random time. Processes are forked off one that has loaded everything, so that a moment costs
little more than the command's own work; this one must not start a thread, so it runs no command itself.
"""

import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

LOADED = (
    *("numpy", "polars", "numba", "torch", "transformers", "experiments.cli.main", "tracekit.recorder.recorder"),
    *("engine.replay.replay", "engine.replay.event_log", "engine.runtime.offload", "experiments.fit.fit_predictor"),
    *("experiments.study.run_study", "tracekit.importers.jsonl", "tracekit.edit.merge", "tracekit.edit.slice"),
)
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
LIMIT_S = 600


class Job:
    """A command, and what it leaves when nobody kills it."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.name: str = settings["name"]
        self.arguments: list[str] = settings["arguments"]
        self.again: list[str] = settings.get("again", [])
        self.timed: list[str] = settings.get("timed", [])
        self.folder: Path = folder / self.name
        self.said = folder / f"{self.name}.said"
        begun = time.monotonic()
        self.finish(self.folder / "warm")  # the first may compile
        begun = time.monotonic()
        self.finish(self.folder / "whole")
        self.seconds = time.monotonic() - begun
        self.operations = int(self.counted.read_text())
        self.whole = self.left(self.folder / "whole")

    @property
    def counted(self) -> Path:
        return Path(self.folder, "operations")

    def started(self, place: Path, kill_at: int | None = None) -> int:
        """The id of a process that runs the command; it kills itself before its operation number `kill_at`."""
        place.mkdir(parents=True, exist_ok=True)
        words = [word.replace("{out}", str(place)) for word in self.arguments]
        words += self.again if any(place.iterdir()) else []
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = self._run(words, str(place), kill_at)
            finally:
                os._exit(code)
        return child

    def _run(self, words: list[str], place: str, kill_at: int | None) -> int:
        said = os.open(self.said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in FILE_EVENTS or not str(arguments[0]).startswith(place):
                return
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        from experiments.cli.main import run

        code = run(words)
        sys.stdout.flush()
        self.counted.write_text(str(seen))
        return code

    def finish(self, place: Path) -> None:
        """Run the command, to its end or until it says that everything is there."""
        code = _waited(self.started(place))
        said = self.said.read_text()
        finished = "exists" in said or "is complete already" in said or "holds a fitted predictor" in said
        assert code == 0 or (code == 2 and finished), f"{self.name}: exit code {code}: {said[-2000:]}"

    def killed(self, place: Path, draw: random.Random, by_operation: bool) -> bool:
        """Kill a run at a random moment; whether it had not ended before."""
        if by_operation:
            child = self.started(place, draw.randint(1, self.operations))
        else:
            child = self.started(place)
            time.sleep(draw.uniform(0, 1.05 * self.seconds))
            os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def left(self, place: Path) -> dict[str, str]:
        """A digest of every file below `place`, hidden ones and folders included."""
        return {
            str(path.relative_to(place)): "" if path.is_dir() else hashlib.sha256(self._content(path)).hexdigest()
            for path in sorted(place.rglob("*"))
            if "cells" not in path.parts[:-1] and "regrets" not in path.parts[:-1]  # pieces fall as the work was cut
        }

    def _content(self, path: Path) -> bytes:
        if path.suffix != ".json" or not self.timed:
            return path.read_bytes()
        value = json.loads(path.read_text())
        return json.dumps({key: value[key] for key in value if key not in self.timed}).encode()


def _waited(child: int) -> int:
    """The exit code of a process, which is killed after `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def main(file: Path) -> None:
    settings = json.loads(file.read_text())
    for module in LOADED:
        importlib.import_module(module)
    draw = random.Random(settings["seed"])
    jobs = [Job(job, Path(settings["folder"])) for job in settings["jobs"]]
    report: dict[str, Any] = {job.name: {"moments": 0, "killed": 0, "differ": []} for job in jobs}
    for number in range(settings["moments"]):
        job = jobs[number % len(jobs)]
        place = job.folder / str(number)
        found = report[job.name]
        found["moments"] += 1
        found["killed"] += job.killed(place, draw, by_operation=number // len(jobs) % 2 == 0)
        job.finish(place)
        left = job.left(place)
        if left != job.whole:
            names = sorted(name for name in {*left, *job.whole} if left.get(name) != job.whole.get(name))
            found["differ"].append({"moment": number, "names": names})
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
