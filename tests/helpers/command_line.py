"""The command line in tests: what calling it gives, and what every mistake must look like."""

from collections.abc import Callable

Call = Callable[..., tuple[int, str, str]]
"""Runs the arguments; returns exit code, stdout and stderr."""


def assert_one_line(code: int, out: str, err: str, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds all `words`."""
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
