"""The machine in words: device, driver, clocks, versions, and the commit that ran."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "triton", "hqq", "accelerate", "polars", "numpy", "numba")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,pcie.link.gen.current"


def describe(device: str) -> dict[str, str]:
    """What the results depend on. It asks the driver's own tool: a process that is forked must not touch CUDA."""
    found = {"host": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores", "memory": _memory()}
    if device.startswith("cuda"):
        said = _said("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader").splitlines()
        values = [value.strip() for value in said[0].split(",")] if said else []
        found |= dict(zip((f"device {name}" for name in QUERY.split(",")), values, strict=False))
    else:
        found["device name"] = "the host's processor"
    found["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["commit"] = _said("git", "describe", "--always", "--dirty").strip() or "unknown"
    return found


def _memory() -> str:
    try:
        first = Path("/proc/meminfo").read_text().splitlines()[0]
        return f"{int(first.split()[1]) / 2**20:.0f} GiB"
    except (OSError, ValueError, IndexError):
        return "unknown"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
