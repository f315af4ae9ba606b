"""The one way to open a file that a user or somebody else's folder names: a regular file, or an OSError that says why.
Where a file of texts is asked for, a pipe may be given, too.

A pipe would keep its reader waiting for ever, a device never ends, a directory is none. Every reader turns OSError into
its own error, so none has to look for these itself.
"""

import errno
import io
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATIENCE_S = 2.0
"""How long a named pipe's writer is waited for."""
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """A descriptor to read the regular file at `path` with. OSError, its strerror for the user, where it is none."""
    try:
        found = Path(path).stat()
        if stat.S_ISREG(found.st_mode):
            # Without blocking: between looking and opening a pipe may have taken the file's place.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode):
                return descriptor
            os.close(descriptor)
    except ValueError as error:  # a null byte in the path
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
    raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The regular file at `path`, to read bytes from. OSError where it is none."""
    return os.fdopen(open_descriptor(path), "rb")


def open_given(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file of texts that a user names: a regular file, a pipe, or `-`, which is what is piped in.

    A pipe may never end: the reader counts what it reads. OSError for anything else, and for a pipe that nobody writes
    into within `PATIENCE_S` seconds.
    """
    if os.fspath(path) == "-":
        return os.fdopen(os.dup(0), "rb")
    try:
        piped = stat.S_ISFIFO(Path(path).stat().st_mode)
    except ValueError as error:  # a null byte in the path
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    return io.BufferedReader(_Pipe(os.fspath(path))) if piped else open_file(path)


class _Pipe(io.RawIOBase):
    """A named pipe, opened without waiting for a writer; then there is one, or an OSError."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        self._first = b""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._first = os.read(self._descriptor, 1)
            except BlockingIOError:  # there is a writer, who has written nothing yet
                break
            if self._first:
                break
            if time.monotonic() > until:
                os.close(self._descriptor)
                raise OSError(errno.EINVAL, "it is a pipe that nobody writes into", path)
            time.sleep(0.02)
        os.set_blocking(self._descriptor, True)

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        room = memoryview(buffer)
        data = self._first or os.read(self._descriptor, len(room))
        self._first = b""
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """What the regular file at `path` holds, `most` bytes at most. OSError where it is none, or larger."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more than was announced, so that a file that grows meanwhile is not read for ever.
        data = file.read(min(size, most) + 1)
    if len(data) > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise OSError(errno.EFBIG, f"it is too large (larger than {limit})", os.fspath(path))
    return data


def checked(path: Path) -> Path:
    """`path`, if there is a regular file that can be read: for libraries that open it by name. OSError otherwise."""
    os.close(open_descriptor(path))
    return path
