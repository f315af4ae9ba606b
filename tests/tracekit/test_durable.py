"""Files that are written whole or not at all, and only where a file can be."""

import os
from pathlib import Path

import pytest

from tracekit.durable import check_place, write_synced
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
