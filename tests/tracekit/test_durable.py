"""Files that are written whole or not at all, and only where a file can be."""

import os
from pathlib import Path

import pytest

from tracekit.durable import aside, check_place, whole_or_nothing, write_synced
from tracekit.errors import TraceError


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    check_place(link)
    write_synced(link, lambda file: file.write(b"new"))
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/null"), tmp_path):
        with pytest.raises(TraceError, match=r"cannot write .* name a file"):
            check_place(place)
    assert pipe.is_fifo()


def test_what_a_killed_writer_left_aside_is_removed(tmp_path: Path) -> None:
    """The next one that would write there finds an empty folder, and leaves none."""
    left = tmp_path / ".out.writing"
    (left / "inner").mkdir(parents=True)
    (left / "part").write_bytes(b"half")
    with whole_or_nothing(tmp_path / "out") as place:
        assert list(left.iterdir()) == []
        place.mkdir()
        with pytest.raises(TraceError, match=r"out is being written by another process"), aside(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(TraceError, match="exists"), whole_or_nothing(tmp_path / "out"):
        pass


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_synced(tmp_path / "a", lambda file: file.write(b"a"))
        with aside(tmp_path / "b") as folder:
            assert folder.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
