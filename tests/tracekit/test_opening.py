"""One way to open what a user names: a regular file, or an OSError that says what it is instead."""

import os
from pathlib import Path

import pytest

from tracekit.opening import checked, open_file, read_file


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "a", 3) == read_file(tmp_path / "link", 100) == b"abc"
    assert checked(tmp_path / "a") == tmp_path / "a"
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"abc"


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a directory"), (Path("/dev/zero"), "a device")):
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            read_file(path, 100)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 100)
    with pytest.raises(OSError, match="null byte"):
        read_file("a\0b", 100)


def test_no_more_is_read_than_makes_sense(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"too large \(larger than 64 KiB\)"):
        read_file(tmp_path / "sparse", 1 << 16)
