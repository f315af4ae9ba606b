"""Probes time single pieces of work on this machine, often enough to say how far a figure spreads."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.hardware.roofline import SECOND
from engine.runtime.calibration.repeated import WIDTH as WIDTH_SHARE
from engine.runtime.calibration.repeated import margin, repeated
from engine.runtime.clocks.device_time import DeviceTime, device_time
from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.queued_link import Link, QueuedLink, Source
from engine.runtime.links.thread_link import ThreadLink
from tracekit.errors import HardwareError

BURST = 4  # copies in a row: what a link sustains that makes one at a time, without its thread's waking up
COLD_BYTES = 1 << 28  # sources are taken one after the other from so much memory, which no cache holds
WIDTH = 2048  # of the matrices that compute is measured with


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured time: the median and the quartiles of `samples` repetitions (ns).

    `margin`: half the width of the median's 95 % interval, as a share of it (engine.runtime.calibration.repeated).
    """

    what: str
    ns: float
    low_ns: float
    high_ns: float
    samples: int
    margin: float = 0.0

    @classmethod
    def of(cls, what: str, samples: Sequence[float]) -> "Figure":
        """The figure of these samples (ns)."""
        low, middle, high = np.percentile(samples, (25, 50, 75)).tolist()
        return cls(what, middle, low, high, len(samples), margin(samples))

    def rate(self, amount: float) -> float:
        """`amount` per second."""
        return amount * SECOND / max(self.ns, 1.0)

    def __str__(self) -> str:
        known = "" if self.known else f", NOT within {100 * WIDTH_SHARE:g} %"
        return f"{self.what}: {self.time} ({self.samples} samples, +-{100 * self.margin:.1f} %{known})"

    @property
    def known(self) -> bool:
        """Whether the median's interval is as narrow as it should be."""
        return self.margin <= WIDTH_SHARE

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


def sample(
    device: torch.device, work: Callable[[int], object], repeats: int, warm_up: int = 2, *, ahead: bool = False
) -> list[float]:
    """Nanoseconds of `work(i)` for i = 0, 1, ..., until the device is done with it; the first ones are discarded.

    `ahead`: without the host's time of handing it over, where the device can be kept busy meanwhile.
    """

    def turn(number: int) -> list[float]:
        return [timed(device_time(device), partial(work, number), ahead=ahead)]

    return repeated(turn, repeats, warm_up=warm_up)[0]


def timed(time: DeviceTime, work: Callable[[], object], *, ahead: bool = False) -> float:
    """Nanoseconds of `work()`, from an idle device until it is done with it. `time` is a new one."""
    time.finish()
    if ahead:
        time.head_start()
    time.mark()
    work()
    time.mark()
    start, end = time.times().tolist()
    return float(end - start)


def burst(link: Link, copies: Iterable[tuple[Source, Tensor]]) -> None:
    """Ask for copies (source, target) at once and wait for all."""
    for ticket in link.copies([(source, target, True) for source, target in copies]):
        link.wait(ticket)


def clamp(value: float, low: int, high: int) -> int:
    """`value` as a whole number from `low` to `high`."""
    return min(max(round(value), low), high)


def buffer(size: int, device: torch.device, *, pinned: bool = False) -> Tensor:
    """u8 [size], every page of it touched. HardwareError when there is no such memory."""
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pinned)
    except (RuntimeError, MemoryError) as error:
        raise HardwareError(f"{device} has no {size} bytes to measure with: {str(error)[:200]}") from error


def copies(device: torch.device, sizes: Sequence[int], repeats: int, *, pinned: bool = True) -> list[Figure]:
    """One copy to the device of each size, on the engine's own link."""
    cold = max(COLD_BYTES, BURST * max(sizes))
    host = buffer(cold, torch.device("cpu"), pinned=pinned and device.type == "cuda")
    target = buffer(BURST * max(sizes), device)
    link: QueuedLink = CudaLink(device) if device.type == "cuda" else ThreadLink()
    try:
        return copies_on(link, partial(device_time, device), host, target, sizes, repeats)
    finally:
        link.close()


def copies_on(
    link: Link, time: Callable[[], DeviceTime], host: Tensor, target: Tensor, sizes: Sequence[int], repeats: int
) -> list[Figure]:
    """One copy of each size from `host` to `target`, both u8 [bytes], the source ever another part of it.

    A link with several copies in flight is measured by one at a time: what the second gains is the simulator's to say
    (`copy_engines`). One that makes them one by one is measured in bursts of `BURST`. The time of asking is left out
    where the device can be kept busy meanwhile: it is the engine's (`per_copy_ns`), not the link's.
    """
    count = copies_at_once(link)
    at = 0

    def pieces(size: int) -> list[tuple[Source, Tensor]]:
        nonlocal at
        found: list[tuple[Source, Tensor]] = []
        for place in range(count):
            at = 0 if at + size > len(host) else at
            found.append((host[at : at + size], target[place * size :][:size]))
            at += size
        return found

    def turn(_: int) -> list[float]:
        return [timed(time(), partial(burst, link, pieces(size)), ahead=True) / count for size in sizes]

    samples = repeated(turn, repeats)
    return [Figure.of(f"copy of {size} bytes", found) for size, found in zip(sizes, samples, strict=True)]


def copies_at_once(link: Link) -> int:
    """How many copies to ask for at a time, to find out what one takes."""
    return BURST if link.in_flight == 1 else 1


def reading(device: torch.device, repeats: int) -> Figure:
    """Reading `COLD_BYTES` of device memory once, by adding it up."""
    block = buffer(COLD_BYTES, device).view(torch.float32)
    return Figure.of(f"reading {COLD_BYTES} bytes", sample(device, lambda _: block.sum(), repeats, ahead=True))


def dense(device: torch.device, dtype: torch.dtype, tokens: Sequence[int], repeats: int) -> list[Figure]:
    """One [WIDTH, WIDTH] matrix applied to so many tokens, the matrix read from memory and not from a cache."""
    size = WIDTH * WIDTH * dtype.itemsize
    matrices = [torch.randn(WIDTH, WIDTH, device=device, dtype=dtype) for _ in range(max(2, COLD_BYTES // size // 2))]
    return _by_tokens("dense", device, dtype, tokens, repeats, lambda i, rows: rows @ matrices[i % len(matrices)])


def experts(device: torch.device, dtype: torch.dtype, tokens: Sequence[int], repeats: int) -> list[Figure]:
    """One gated expert of WIDTH x WIDTH/2, as most families have it, applied to so many tokens."""
    return _by_tokens("expert", device, dtype, tokens, repeats, gated(device, dtype))


def gated(device: torch.device, dtype: torch.dtype) -> Callable[[int, Tensor], Tensor]:
    """Applies one of such experts to rows [tokens, WIDTH], another at each number: no cache holds its weights."""
    inner = WIDTH // 2
    size = 3 * WIDTH * inner * dtype.itemsize
    weights = [
        (
            torch.randn(2 * inner, WIDTH, device=device, dtype=dtype) / 64,
            torch.randn(WIDTH, inner, device=device, dtype=dtype) / 64,
        )
        for _ in range(max(2, COLD_BYTES // size // 2))
    ]

    def run(number: int, rows: Tensor) -> Tensor:
        wide, down = weights[number % len(weights)]
        gate, up = functional.linear(rows, wide).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, down)

    return run


def expert_params() -> int:
    """Parameters of the expert that `experts` measures."""
    return 3 * WIDTH * WIDTH // 2


def _by_tokens(
    what: str,
    device: torch.device,
    dtype: torch.dtype,
    tokens: Sequence[int],
    repeats: int,
    run: Callable[[int, Tensor], Tensor],
) -> list[Figure]:
    with torch.inference_mode():
        rows = [torch.randn(count, WIDTH, device=device, dtype=dtype) for count in tokens]

        def turn(number: int) -> list[float]:
            return [timed(device_time(device), partial(run, number, some), ahead=True) for some in rows]

        samples = repeated(turn, repeats)
    return [Figure.of(f"{what}, {count} tokens", found) for count, found in zip(tokens, samples, strict=True)]


def readback(device: torch.device, repeats: int) -> Figure:
    """What a gate chose for one token, from the device to the host."""
    ids = torch.zeros(1, 8, dtype=torch.int16, device=device)
    return Figure.of("gate readback", sample(device, lambda _: ids.cpu().numpy(), repeats, ahead=True))
