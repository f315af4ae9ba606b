"""Versions of what is installed, this distribution first."""

import sys


def own_version() -> str:
    """The version of the installed distribution; "not installed" where there is only its source."""
    return version_of("moe-tracekit", "not installed")


def version_of(distribution: str, absent: str = "unknown") -> str:
    """The version of a distribution; `absent` where it is not installed."""
    loaded = getattr(sys.modules.get(distribution), "__version__", None)  # reading what is installed takes milliseconds
    if loaded is not None:
        return str(loaded)
    from importlib.metadata import PackageNotFoundError, version  # slow to import: not for --help

    try:
        return version(distribution)
    except PackageNotFoundError:
        return absent
