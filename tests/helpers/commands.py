"""The command line in a process of its own, with what it took of the machine."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "from experiments.cli.main import main; main()"
PYTHON_BYTES = 200 << 20
"""What a process takes that does next to nothing: Python, numpy, polars."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: exit code (negative: the signal), what it printed, most resident memory in bytes."""

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


def harmless(text: str) -> bool:
    """Whether a terminal would obey nothing in it, nor turn it around."""
    return all(character.isprintable() or character in "\n\t" for character in text)


def command(*arguments: object, limit_s: float = 60, interrupt_s: float | None = None, **environment: str) -> Done:
    """Run the command line; killed after `limit_s`, Ctrl-C after `interrupt_s`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdout=out,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        timers = [threading.Timer(limit_s, started.kill)]
        if interrupt_s is not None:
            timers.append(threading.Timer(interrupt_s, started.send_signal, [signal.SIGINT]))
        for timer in timers:
            timer.start()
        _, status, used = os.wait4(started.pid, 0)
        for timer in timers:
            timer.cancel()
        started.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode(errors="backslashreplace") for file in (out, err)]
    return Done(started.returncode, *texts, used.ru_maxrss << 10)
