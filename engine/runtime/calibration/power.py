"""The power of a machine, idle and at work, where it is reported: the accelerator's by NVML, the processor's by RAPL.

Board, fans and power supply report nothing: the figures are lower bounds of what a meter at the plug would show.
"""

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import torch

from engine.hardware import Power
from engine.runtime.clocks.device_time import device_time

RAPL = Path("/sys/class/powercap")
SECONDS = 2.0
INTERVAL_S = 0.05
_QUERY = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")

Meter = Callable[[], float | None]
"""The watts of the accelerator at this moment; None where it does not report them."""


def power(
    device: torch.device,
    work: Callable[[], object],
    *,
    rapl: Path = RAPL,
    seconds: float = SECONDS,
    meter: Meter | None = None,
    finish: Callable[[], object] | None = None,
) -> tuple[Power | None, str]:
    """Watts idle and while `work` runs again and again, and where they come from; None and why where nothing says.

    The accelerator is read by a thread of its own *while* it works; `finish` waits until it is done. On the CPU the
    device is the host, which is counted once, as host. A host that reports nothing counts as 0 W, which is said.
    """
    accelerator = device.type == "cuda"
    if meter is None:
        meter = partial(gpu_watts, device) if accelerator else None
    if finish is None:
        finish = device_time(device).finish
    counters = _counters(rapl)
    if accelerator and (meter is None or meter() is None):
        return None, "power: left out, the accelerator reports none (NVML, nvidia-smi)"
    if not accelerator and not counters:
        return None, f"power: left out, the processor reports none that can be read (RAPL, {rapl})"
    finish()
    with sampled(meter) as idle_gpu:
        idle = _watts(counters, seconds, partial(sleep, INTERVAL_S))
    with sampled(meter) as busy_gpu:
        at_work = _watts(counters, seconds, work)
    finish()
    device_idle = median(idle_gpu) if idle_gpu else 0.0
    late = busy_gpu[len(busy_gpu) // 4 :]  # clocks and the meter's own average take a moment to rise
    device_busy = median(late) if late else 0.0
    found = Power(
        device_idle_w=round(device_idle, 2),
        device_busy_w=round(max(device_busy, device_idle), 2),
        host_idle_w=round(idle, 2),
        host_busy_w=round(max(at_work, idle), 2),
    )
    said = ["RAPL counts processor and memory" if counters else "the processor reports none (RAPL) and counts as 0 W"]
    if accelerator:
        said.append(f"NVML the accelerator, {len(busy_gpu)} readings while it worked")
    return found, f"power: {', '.join(said)}; board, fans and power supply are not in it"


@contextmanager
def sampled(meter: Meter | None, interval_s: float = INTERVAL_S) -> Iterator[list[float]]:
    """What the meter says while the block runs, read by a thread; one reading at least, none without a meter."""
    readings: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while meter is not None:
            watts = meter()
            if watts is not None:
                readings.append(watts)
            if over.wait(interval_s):
                return

    thread = threading.Thread(target=watch, name="power-meter", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        over.set()
        thread.join()


def gpu_watts(device: torch.device) -> float | None:
    """The accelerator's power now: by NVML where torch finds it, else as nvidia-smi says, which takes longer."""
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # no NVML for Python, or one that fails in its own way: the other source is asked
        pass
    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        command = [*_QUERY, f"--id=GPU-{uuid.removeprefix('GPU-')}"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return float(answer.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, AttributeError):
        return None


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
    """Mean watts of the host while `work` is called again and again; 0 without counters."""
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
