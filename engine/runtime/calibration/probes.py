"""Probes: what one piece of work takes on this machine, measured often enough to say how far the figure spreads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.queued_link import QueuedLink
from engine.runtime.links.thread_link import ThreadLink
from tracekit.errors import HardwareError

SECOND = 10**9
BURST = 4  # copies in a row: what a link sustains, without the time a waiting thread takes to wake up
COLD_BYTES = 1 << 28  # sources are taken in turns from so much memory, which no cache holds
WIDTH = 2048  # of the matrices that compute is measured with


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured time: the median and the quartiles of `samples` repetitions (ns)."""

    what: str
    ns: float
    low_ns: float
    high_ns: float
    samples: int

    @classmethod
    def of(cls, what: str, samples: Sequence[float]) -> "Figure":
        """The figure of these samples (ns)."""
        low, middle, high = np.percentile(samples, (25, 50, 75)).tolist()
        return cls(what, middle, low, high, len(samples))

    def rate(self, amount: float) -> float:
        """`amount` per second."""
        return amount * SECOND / max(self.ns, 1.0)

    def __str__(self) -> str:
        return f"{self.what}: {self.time} ({self.samples} samples)"

    @property
    def time(self) -> str:
        """The time and its quartiles."""
        return f"{time_text(self.ns)} [{time_text(self.low_ns)}, {time_text(self.high_ns)}]"

    def gigabytes(self, amount: float) -> str:
        """`amount` bytes per second, and the quartiles."""
        low, middle, high = (amount / max(ns, 1.0) for ns in (self.high_ns, self.ns, self.low_ns))
        return f"{middle:.2f} GB/s [{low:.2f}, {high:.2f}]"


def time_text(ns: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def sample(device: torch.device, work: Callable[[int], object], repeats: int, warm_up: int = 2) -> list[float]:
    """Nanoseconds of `work(i)` for i = 0, 1, ..., until the device is done with it; the first ones are discarded."""
    found = []
    for turn in range(repeats + warm_up):
        synchronise(device)
        start = perf_counter_ns()
        work(turn)
        synchronise(device)
        found.append(float(perf_counter_ns() - start))
    return found[warm_up:]


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def buffer(size: int, device: torch.device, *, pinned: bool = False) -> Tensor:
    """u8 [size], every page of it touched. HardwareError when there is no such memory."""
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pinned)
    except (RuntimeError, MemoryError) as error:
        raise HardwareError(f"{device} has no {size} bytes to measure with: {str(error)[:200]}") from error


def copies(device: torch.device, sizes: Sequence[int], repeats: int, *, pinned: bool = True) -> list[Figure]:
    """One copy to the device of each size, in bursts on the engine's own link."""
    cold = max(COLD_BYTES, BURST * max(sizes))
    host = buffer(cold, torch.device("cpu"), pinned=pinned and device.type == "cuda")
    target = buffer(BURST * max(sizes), device)
    link: QueuedLink = CudaLink(device) if device.type == "cuda" else ThreadLink()
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    at = 0

    def burst(size: int) -> None:
        nonlocal at
        tickets = []
        for place in range(BURST):
            at = 0 if at + size > cold else at
            tickets.append(link.copy(host[at : at + size], target[place * size :][:size], demand=True))
            at += size
        for ticket in tickets:
            link.wait(ticket)

    try:
        for turn in range(repeats + 1):  # sizes in turns, so that a drift of the machine's speed falls on all alike
            for size in sizes:
                (ns,) = sample(device, lambda _, size=size: burst(size), 1, 0)  # type: ignore[misc]
                if turn:
                    samples[size].append(ns / BURST)
    finally:
        link.close()
    return [Figure.of(f"copy of {size} bytes", samples[size]) for size in sizes]


def reading(device: torch.device, repeats: int) -> Figure:
    """Reading `COLD_BYTES` of device memory once, by adding it up."""
    block = buffer(COLD_BYTES, device).view(torch.float32)
    return Figure.of(f"reading {COLD_BYTES} bytes", sample(device, lambda _: block.sum(), repeats))


def dense(device: torch.device, dtype: torch.dtype, tokens: Sequence[int], repeats: int) -> list[Figure]:
    """One [WIDTH, WIDTH] matrix applied to so many tokens, the matrix read from memory and not from a cache."""
    size = WIDTH * WIDTH * dtype.itemsize
    matrices = [torch.randn(WIDTH, WIDTH, device=device, dtype=dtype) for _ in range(max(2, COLD_BYTES // size // 2))]
    return _by_tokens("dense", device, dtype, tokens, repeats, lambda turn, rows: rows @ matrices[turn % len(matrices)])


def experts(device: torch.device, dtype: torch.dtype, tokens: Sequence[int], repeats: int) -> list[Figure]:
    """One gated expert of WIDTH x WIDTH/2, as most families have it, applied to so many tokens."""
    inner = WIDTH // 2
    size = 3 * WIDTH * inner * dtype.itemsize
    weights = [
        (
            torch.randn(2 * inner, WIDTH, device=device, dtype=dtype) / 64,
            torch.randn(WIDTH, inner, device=device, dtype=dtype) / 64,
        )
        for _ in range(max(2, COLD_BYTES // size // 2))
    ]

    def run(turn: int, rows: Tensor) -> Tensor:
        wide, down = weights[turn % len(weights)]
        gate, up = functional.linear(rows, wide).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, down)

    return _by_tokens("expert", device, dtype, tokens, repeats, run)


def expert_params() -> int:
    """Parameters of the expert that `experts` measures."""
    return 3 * WIDTH * WIDTH // 2


def _by_tokens(
    what: str,
    device: torch.device,
    dtype: torch.dtype,
    tokens: Sequence[int],
    repeats: int,
    run: Callable[[int, Tensor], Any],
) -> list[Figure]:
    samples: dict[int, list[float]] = {count: [] for count in tokens}
    with torch.inference_mode():
        rows = {count: torch.randn(count, WIDTH, device=device, dtype=dtype) for count in tokens}
        for turn in range(repeats + 1):
            for count in tokens:
                (ns,) = sample(device, lambda _, turn=turn, count=count: run(turn, rows[count]), 1, 0)  # type: ignore[misc]
                if turn:
                    samples[count].append(ns)
    return [Figure.of(f"{what}, {count} tokens", samples[count]) for count in tokens]


def readback(device: torch.device, repeats: int) -> Figure:
    """What a gate chose for one token, from the device to the host."""
    ids = torch.zeros(1, 8, dtype=torch.int16, device=device)
    return Figure.of("gate readback", sample(device, lambda _: ids.cpu().numpy(), repeats))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return meminfo("MemAvailable")


def meminfo(field: str) -> int:
    """A line of /proc/meminfo, in bytes; the smallest memory there is where nothing says."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 1 << 30
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in text.splitlines()}
    return int(values[field][0]) * 1024 if field in values else 1 << 30
