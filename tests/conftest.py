"""Fixtures that every package's tests share."""

import os
import signal
from pathlib import Path
from zlib import crc32

import pytest

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


LONG = (
    *("test_visits.py", "test_grouped.py", "test_reader_memory.py", "test_expansion.py", "test_waits.py"),
    *("test_validate.py", "test_families.py", "test_races.py", "test_protocols.py", "test_references.py"),
    *("test_conformance.py", "test_resuming.py", "test_output.py", "test_prefill.py", "test_stack_curve.py"),
)
"""Tables whose cases take seconds each: `make test` takes about half of them, `make thorough` all."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TRACEKIT_THOROUGH"):
        return
    cases = [item for item in items if item.path.name in LONG and hasattr(item, "callspec")]
    # By name, not by turns: two parameters that alternate would always lose the same one of a pair.
    left = {id(item) for item in cases if crc32(item.nodeid.encode()) % 2}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left])
    items[:] = [item for item in items if id(item) not in left]
