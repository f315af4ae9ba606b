"""Decoders that shout on stderr, or abort the process, over a file that somebody damaged on purpose: neither is seen.

polars' decoders panic, of which Python hears as an exception after some lines on stderr; and where a file asks for more
memory than there can be, they abort. A digest proves nothing about that: who made the file made the digest. So whatever
decodes a stranger's file does it while `guarded`. What other threads write to stderr meanwhile is lost as well.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from tracekit.errors import one_line

ABORTED = 2  # the exit code of every error that is the input's


class _Guard:
    """How many decoders run, of which files, and what stood in their way before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: list[str] = []
        self.stderr = -1
        self.before: int | None = None
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # kept: C code knows its address

    def enter(self, file: str) -> None:
        with self.lock:
            self.files.append(file)
            if len(self.files) == 1:
                self._raise_guard()

    def leave(self, file: str) -> None:
        with self.lock:
            self.files.remove(file)
            if not self.files:
                self._lower_guard()

    def _raise_guard(self) -> None:
        try:
            self.stderr = os.dup(2)
        except OSError:  # closed by whoever started us
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        self.before = _on_abort(ctypes.cast(self.callback, ctypes.c_void_p).value)

    def _lower_guard(self) -> None:
        if self.stderr < 0:
            return
        _on_abort(self.before)
        os.dup2(self.stderr, 2)
        os.close(self.stderr)
        self.stderr = -1

    def _aborted(self, number: int) -> None:
        """The last that this process does: whatever aborts cannot be called back."""
        what = " or ".join(dict.fromkeys(self.files))
        said = f"error: {one_line(f'{what} is damaged: decoding it fails for want of memory that no machine has')}\n"
        with contextlib.suppress(OSError):
            os.write(self.stderr, said.encode())
        os._exit(ABORTED)


def _on_abort(function: int | None) -> int | None:
    """Have the C function at an address called at an abort, None for the system's; returns what was called before."""
    register = ctypes.CDLL(None).signal
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before: int | None = register(signal.SIGABRT, function)
    return before


_GUARD = _Guard()


@contextlib.contextmanager
def guarded(file: str | Path) -> Iterator[None]:
    """While a library decodes `file`: what it writes to stderr is not seen; if it aborts, one line says what it was at,
    and the exit code is 2.
    """
    if os.name != "posix":
        yield
        return
    name = str(file)
    _GUARD.enter(name)
    try:
        yield
    finally:
        _GUARD.leave(name)
