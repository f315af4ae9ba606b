"""Where compiled policies are kept. numba's index files are pickles, which may run anything when they are read: so only
in a folder that nobody but this user can write to.
"""

import os
import stat
import tempfile
import warnings
from pathlib import Path


def cache_directory() -> Path | None:
    """$TRACEKIT_CACHE, else the user's cache; a private folder if that cannot be written. None, with a warning, if
    others could write there: then nothing is kept, and each process compiles anew.
    """
    chosen = os.environ.get("TRACEKIT_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracekit"
    directory = base / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        usable = os.access(directory, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        directory = Path(tempfile.gettempdir()) / f"tracekit-compiled-{os.getuid()}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            return None
    if others := whose_else(directory):
        warnings.warn(
            f"compiled policies are not kept: {others} (set TRACEKIT_CACHE to a folder of your own)", stacklevel=2
        )
        return None
    return directory


def whose_else(directory: Path) -> str:
    """Who else than this user and root could put a file into `directory`, or another folder in its place; "": nobody.

    In a folder with the sticky bit, such as /tmp, only the owner of a folder can move it.
    """
    trusted = (os.getuid(), 0)
    place = directory.resolve()
    for folder in (place, *place.parents):
        found = folder.lstat()
        sticky = folder != place and found.st_mode & stat.S_ISVTX
        if found.st_uid not in trusted:
            return f"{folder} belongs to another user"
        # A group of the user's own, as many systems give everyone, has the user's number.
        alone = found.st_gid == os.getuid() == os.getgid()
        if found.st_mode & (0o002 if alone else 0o022) and not sticky:
            return f"others may write to {folder}"
    return ""
