"""The power of a machine, idle and at work, where it is reported: the accelerator's by NVML, the processor's by RAPL.

Board, fans and power supply report nothing: the figures are lower bounds of what a meter at the plug would show.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import torch

from engine.hardware import Power

RAPL = Path("/sys/class/powercap")
SECONDS = 2.0
_QUERY = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")


def power(
    device: torch.device, work: Callable[[], object], *, rapl: Path = RAPL, seconds: float = SECONDS
) -> tuple[Power | None, str]:
    """Watts idle and while `work` runs again and again, and where they come from; None and why where nothing says.

    On the CPU the device is the host, which is counted once, as host.
    """
    counters = _counters(rapl)
    if not counters:
        return None, f"power: left out, the processor reports none that can be read (RAPL, {rapl})"
    if device.type == "cuda" and _gpu_watts(device) is None:
        return None, "power: left out, the accelerator reports none (nvidia-smi)"
    idle = _watts(counters, seconds, lambda: sleep(0.05))
    idle_gpu = _gpu_watts(device) or 0.0
    seen: list[float] = []

    def busy() -> None:
        work()
        if device.type == "cuda" and len(seen) < 20:
            torch.cuda.synchronize(device)
            seen.append(_gpu_watts(device) or 0.0)

    at_work = _watts(counters, seconds, busy)
    found = Power(
        device_idle_w=round(idle_gpu, 2),
        device_busy_w=round(max(seen, default=0.0), 2),
        host_idle_w=round(idle, 2),
        host_busy_w=round(max(at_work, idle), 2),
    )
    counted = "RAPL counts processor and memory" + (", nvidia-smi the accelerator" if device.type == "cuda" else "")
    return found, f"power: {counted}; board, fans and power supply are not in it"


def _counters(rapl: Path) -> list[Path]:
    """Energy counters of packages, microjoules: those that stand for themselves and can be read."""
    found = []
    for path in sorted(rapl.glob("intel-rapl:*/energy_uj")):
        if path.parent.name.count(":") != 1:
            continue  # a part of a package, counted there
        try:
            int(path.read_text())
        except (OSError, ValueError):
            continue
        found.append(path)
    return found


def _watts(counters: list[Path], seconds: float, work: Callable[[], object]) -> float:
    before, start = [int(path.read_text()) for path in counters], monotonic()
    while monotonic() - start < seconds:
        work()
    taken = monotonic() - start
    total = 0
    for path, first in zip(counters, before, strict=True):
        last = int(path.read_text())
        if last < first:  # it has run over
            last += int((path.parent / "max_energy_range_uj").read_text())
        total += last - first
    return total / 1e6 / taken


def _gpu_watts(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        command = [*_QUERY, f"--id=GPU-{uuid.removeprefix('GPU-')}"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return float(answer.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, AttributeError):
        return None
