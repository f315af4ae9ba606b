"""Ctrl-C: one line on stderr and exit code 130, wherever it strikes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from types import FrameType

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
RETRY_S = 0.01
DEAF_S = 1.0
"""How long compiled code may run on before the process is ended without its leave."""
STUCK_S = 4.0
"""How long tidying up may take."""


class Interrupted(Exception):  # noqa: N818 - no error
    """A command was interrupted. Typer turns KeyboardInterrupt into an exit code and forgets what it said."""


class Interrupts:
    """SIGINT raises KeyboardInterrupt until it is heard, and leaves a mark (`came`).

    Libraries that are being imported turn it into other errors; and where nobody can catch an exception, as in
    destructors and in callbacks from C, Python would print a traceback and go on. While compiled code runs Python hears
    nothing at all: a thread does, and ends the process if nothing else has heard it after `DEAF_S`, or if what has
    heard it (threads that run compiled code, a copy that takes for ever) is not done after `STUCK_S` more. What is
    written meanwhile is then as after a kill: there whole, or not at all.
    """

    def __init__(self) -> None:
        self.came = False
        self._unheard = sys.unraisablehook

    def install(self) -> None:
        """Handle SIGINT from now on, unless whoever started us had it ignored."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._raise)
            self._listen()
            if hasattr(signal, "setitimer"):
                signal.signal(signal.SIGALRM, self._raise)
                sys.unraisablehook = self._raise_again

    def ignore(self) -> None:
        """From now on SIGINT does nothing."""
        if signal.getsignal(signal.SIGINT) == self._raise:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _listen(self) -> None:
        """A byte comes out of the pipe for every signal, whatever the main thread is at."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(read,), name="ctrl-c", daemon=True).start()

    def _hear(self, bell: int) -> None:
        while os.read(bell, 1)[0] != signal.SIGINT:
            pass
        time.sleep(DEAF_S)
        if self.came:
            time.sleep(STUCK_S)
        if signal.getsignal(signal.SIGINT) == self._raise:  # else it is said already, and something hangs at the exit
            os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

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
