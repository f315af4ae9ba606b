"""Where the collected cases of foreign logs are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of foreign logs that came out wrong once: under $TRACEKIT_SHARED, else ../shared."""
    named = os.environ.get("TRACEKIT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[4] / "shared"
    for place in (folder, folder.parent):
        if (place / "cases" / "importers").is_dir():
            return place / "cases" / "importers"
    pytest.skip(f"the cases of foreign logs are not under {folder} (set TRACEKIT_SHARED to the folder that holds them)")
