"""Ctrl-C: one line on stderr and exit code 130, wherever it strikes."""

import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from types import FrameType

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
RETRY_S = 0.01


class Interrupted(Exception):  # noqa: N818 - no error
    """A command was interrupted. Typer turns KeyboardInterrupt into an exit code and forgets what it said."""


class Interrupts:
    """SIGINT raises KeyboardInterrupt until it is heard, and leaves a mark (`came`).

    Libraries that are being imported turn it into other errors; and where nobody can catch an exception, as in
    destructors and in callbacks from C, Python would print a traceback and go on.
    """

    def __init__(self) -> None:
        self.came = False
        self._unheard = sys.unraisablehook

    def install(self) -> None:
        """Handle SIGINT from now on, unless whoever started us had it ignored."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._raise)
            if hasattr(signal, "setitimer"):
                signal.signal(signal.SIGALRM, self._raise)
                sys.unraisablehook = self._raise_again

    def ignore(self) -> None:
        """From now on SIGINT does nothing."""
        if signal.getsignal(signal.SIGINT) == self._raise:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _raise(self, number: int, frame: "FrameType | None") -> None:
        self.came = True
        raise KeyboardInterrupt

    def _raise_again(self, lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        elif not self.came:  # else half-made objects that are torn down
            self._unheard(lost)


def passing_on(command: Callable[P, R]) -> Callable[P, R]:
    """`command`, but KeyboardInterrupt leaves it as Interrupted."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error)) from None

    return run


def interrupted(error: BaseException | None = None) -> int:
    """Say so, with what the error adds, and return the exit code."""
    added = ""
    if error is not None and str(error):
        from tracekit.errors import one_line

        added = one_line(error)
    print("interrupted" + (f": {added}" if added else ""), file=sys.stderr)
    return INTERRUPTED
