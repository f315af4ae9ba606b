"""Fixtures that every package's tests share."""

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.long import PARTS, commit, functions, is_left_out, part_of

# Without a GPU, Triton's kernels are interpreted on the CPU: asked for before any module that defines one is read.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Some families' configurations ask the hub for others' when they are built: nothing here may go to a network.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure() -> None:
    """Tests press Ctrl-C in processes of their own, which would ignore it where a shell had pytest ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real reference traces: $TRACEKIT_SHARED, else ../shared/data beside the repository."""
    named = os.environ.get("TRACEKIT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    for place in (folder, folder / "data"):
        if (place / "qwen3-30b-a3b-phone").is_dir():
            return place
    pytest.skip(f"reference traces are not at {folder} (set TRACEKIT_SHARED to their folder)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="all", help="of the long tests: all, commit (the commit's turn), or 0 to 3")


def pytest_report_header(config: pytest.Config) -> str | None:
    part = _part(config)
    return None if part is None else f"long tests: part {part} of 0 to {PARTS - 1} (make thorough runs all)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, long = _part(config), functions()
    if part is None:
        return
    # Real traces are not everywhere: where they are, they are used.
    left = [
        item
        for item in items
        if "shared_data" not in getattr(item, "fixturenames", ()) and is_left_out(item.nodeid, part, long)
    ]
    config.hook.pytest_deselected(items=left)
    gone = set(map(id, left))
    items[:] = [item for item in items if id(item) not in gone]


def _part(config: pytest.Config) -> int | None:
    """The part of the long tests that is asked for; None for all."""
    named = config.getoption("--part")
    if named == "all" or os.environ.get("TRACEKIT_THOROUGH"):
        return None
    return part_of(commit()) if named == "commit" else int(named)
