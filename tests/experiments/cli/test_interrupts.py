"""Ctrl-C, wherever it strikes: one line on stderr, exit code 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.main import guarded

ROOT = Path(__file__).parents[3]
# What a library does to an interrupt while it is imported, by the name of the module that is imported then.
LIBRARIES = {
    "plain": "press()",
    "converts": "try:\n    press()\nexcept KeyboardInterrupt:\n    raise ImportError('half imported') from None",
    "destroys": (
        "class Noisy:\n    def __del__(self):\n        press()\n\nNoisy()\nimport time\ntime.sleep(5)\n"
        "raise SystemExit('never interrupted')"
    ),
}
PRESS = "import os, signal\n\ndef press():\n    os.kill(os.getpid(), signal.SIGINT)\n    sum(range(100))\n\n"
# A command whose module imports the library.
PROGRAM = """
import sys
from experiments.cli import main
main.COMMANDS["press"] = ("press", "")
main.importlib.import_module = lambda name: __import__(LIBRARY)
main.main()
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
@pytest.mark.parametrize("name", LIBRARIES)
def test_while_a_module_is_imported(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(PRESS + LIBRARIES[name])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LIBRARY", repr(name)), "press"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_command_may_add_to_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise KeyboardInterrupt("what is finished\nis kept")

    assert guarded(action) == 130
    assert capsys.readouterr().err == "interrupted: what is finished is kept\n"
