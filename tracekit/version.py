"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Such as "0.1.0"; "not installed" where the source is imported from a folder."""
    try:
        return version("moe-tracekit")
    except PackageNotFoundError:
        return "not installed"


__version__ = own_version()
