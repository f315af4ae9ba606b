"""The command line in a process of its own, with what it took of the machine."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the system says of a child's memory counts its parent's, too, from before it became another program.
PROGRAM = """
import atexit, os, pathlib
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path(os.environ["PEAK"]).write_text(status.read_text() if status.exists() else ""))
from experiments.cli.main import main
main()
"""
PYTHON_BYTES = 200 << 20
"""What a process takes that does next to nothing: Python, numpy, polars."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: exit code (negative: the signal), what it printed, most resident memory in bytes
    (0 where that is not known: the process was killed, or the system does not say)."""

    code: int
    out: str
    err: str
    peak: int

    def refused(self, *words: str) -> bool:
        """Whether it was refused in one line, with these words in it; an assertion says what else came."""
        assert self.code == 2, (self.code, self.err[-2000:])
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err[-2000:]
        assert all(word in self.err for word in words), self.err
        assert harmless(self.err) and len(self.err) < 1_100, self.err
        return True


def worked(seconds: float) -> Callable[[int], object]:
    """Returns when a process has computed for so long, or is no more."""

    def wait(process: int) -> None:
        while (spent := _seconds(process)) is not None and spent < seconds:
            time.sleep(0.1)

    return wait


def idle(seconds: float) -> Callable[[int], object]:
    """Returns when a process has begun, and then computed next to nothing for so long; or is no more."""

    def wait(process: int) -> None:
        before, since = 0.0, time.monotonic()
        while (spent := _seconds(process)) is not None:
            if spent < 1 or spent > before + 0.02:
                before, since = spent, time.monotonic()
            elif time.monotonic() - since > seconds:
                return
            time.sleep(0.1)

    return wait


def _seconds(process: int) -> float | None:
    """What a process has computed so far; None of one that has ended."""
    fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return None if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def harmless(text: str) -> bool:
    """Whether a terminal would obey nothing in it, nor turn it around."""
    return all(character.isprintable() or character in "\n\t" for character in text)


def command(
    *arguments: object, limit_s: float = 60, interrupt: Callable[[int], object] | None = None, **environment: str
) -> Done:
    """Run the command line; killed after `limit_s`, Ctrl-C when `interrupt` of its process returns."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("r") as peak:
        started = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PEAK": peak.name, **environment},
        )
        limit = threading.Timer(limit_s, started.kill)
        limit.start()
        if interrupt is not None:
            interrupt(started.pid)
            started.send_signal(signal.SIGINT)
        started.wait()
        limit.cancel()
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode(errors="backslashreplace") for file in (out, err)]
        said = re.search(r"VmHWM:\s*(\d+) kB", peak.read())
    return Done(started.returncode, *texts, int(said[1]) << 10 if said else 0)
