"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("moe-tracekit")
except PackageNotFoundError:
    __version__ = "not installed"
