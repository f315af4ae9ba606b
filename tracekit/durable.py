"""Files that are either there, whole and on disk, or not there; and one writer at a time."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tracekit.errors import TraceError

TEMPORARY = ".writing"  # suffix of a file that is not finished


def write_synced(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file through `fill` under a temporary name, sync it, rename it to `path`, sync the rename.

    Where `path` is a link, what it leads to is written.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # elsewhere a directory cannot be opened, and renames are journalled
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """An empty directory beside `path` to make its content in, gone afterwards; nobody else's meanwhile.

    What a killed process left of one is removed first. Raises TraceError if another process is at it.
    """
    folder = _beside(path)
    with reporting(path):
        folder.mkdir(exist_ok=True)
        held = lock_directory(folder, path)
    try:
        with reporting(path):
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


@contextlib.contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A path aside to write a directory at; it becomes `output`, which must not exist, when all went well."""
    check_new(output)
    if not output.absolute().parent.is_dir():
        raise TraceError(f"cannot write {output}: there is no directory {output.parent}")
    with aside(output) as folder:
        yield folder / output.name
        with reporting(output):
            (folder / output.name).rename(output)


def check_new(output: Path) -> None:
    """Raise TraceError if there is something at `output` already."""
    if output.exists() or output.is_symlink():
        tidy(output)
        raise TraceError(f"{output} exists: choose another name or remove it")


def tidy(path: Path) -> None:
    """Remove what a writer that was killed behind its last step left beside the finished `path`."""
    if _beside(path).is_dir():
        with contextlib.suppress(TraceError), aside(path):
            pass


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}")


def check_place(path: Path) -> None:
    """Raise TraceError if no file can be written at `path`: better known before the work that is to be kept in it."""
    if path.is_dir():
        raise TraceError(f"cannot write {path}: it is a directory; name a file")
    if path.exists() and not path.is_file():
        raise TraceError(f"cannot write {path}: it is a device, a pipe or a socket; name a file")
    if not os.access(path.absolute().parent, os.W_OK):
        raise TraceError(f"cannot write {path}: {path.parent} is no directory that can be written to")


def lock_directory(directory: Path, path: Path | None = None) -> int | None:
    """Hold `directory` against a second writer while this process lives; None where that is not possible.

    `path` is what is being written, if not `directory` itself. Raises TraceError where another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise TraceError(f"{path or directory} is being written by another process") from None
    except OSError:  # a file system without locks
        os.close(held)
        return None
    return held


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn an OSError into the TraceError that says what could not be written."""
    try:
        yield
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}") from None
