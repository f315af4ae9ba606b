"""The command line, called from a test."""

import pytest

from experiments.cli.main import run
from tests.helpers.command_line import Call


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def runner(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what the test itself made others print
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return runner
