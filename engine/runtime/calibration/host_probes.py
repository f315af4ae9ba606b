"""Probes of the host time its processor as a lane that computes experts, and the disk that slabs are read from."""

import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import torch
from torch.nn import functional

from engine.hardware import Cpu, Disk, Lanes
from engine.hardware.roofline import SECOND
from engine.runtime.calibration import probes
from engine.runtime.calibration.beside import beside
from engine.runtime.calibration.probes import Figure, clamp
from engine.runtime.calibration.repeated import repeated
from engine.runtime.memory import meminfo
from tracekit.errors import HardwareError

DISK_BYTES = 1 << 29
LANES = (2, 4, 8)
"""Numbers of reads together that a disk is measured with, beside one alone."""
READ_BYTES = 1 << 24  # about one expert
PAGE = 4096
MANY = 64  # tokens of an expert that has enough to compute


def cpu_lane(device: torch.device, dtype: torch.dtype, repeats: int) -> tuple[list[Figure], Cpu]:
    """The host's processor computing experts for `device`: one token, many tokens, the hand-over, the way there; and
    what copies do to it, and it to copies."""
    host = torch.device("cpu")
    alone, many = probes.experts(host, dtype, (1, MANY), repeats)
    tiny = torch.randn(8, 8, dtype=dtype)
    rows = torch.randn(1, probes.WIDTH, device=device, dtype=dtype)
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():

        def hand_over(_: int) -> None:
            pool.submit(functional.linear, tiny, tiny).result()

        handed = Figure.of("CPU lane, handing an expert over", probes.sample(host, hand_over, 10 * repeats))
        there = probes.sample(device, lambda _: rows.cpu().to(device), 10 * repeats)
    way = Figure.of("CPU lane, activations there and back", there)
    alone, many = (replace(one, what=f"CPU lane, {one.what}") for one in (alone, many))
    params = probes.expert_params()
    both, slower, copies_slower = beside(device, dtype, repeats)
    return [alone, many, handed, way, *both], Cpu(
        memory_bandwidth_bytes_per_s=clamp(alone.rate(params * dtype.itemsize), 1_000, 10**15),
        compute_flops_per_s=clamp(many.rate(2 * params * MANY), 10**6, 10**18),
        per_expert_ns=clamp(handed.ns, 0, 10**10),
        transfer_ns=clamp(way.ns, 0, 10**10),
        slowdown_percent=slower,
        link_slowdown_percent=copies_slower,
    )


def disk(folder: Path, repeats: int, size: int = DISK_BYTES) -> tuple[list[Figure], Disk, str]:
    """Reading from the disk that holds `folder`: large pieces, alone and several together, single pages, and how caches
    were kept out of it.

    A file of `size` bytes is written there and removed. HardwareError when that cannot be done.
    """
    piece = min(READ_BYTES, size // 4)
    rng = np.random.default_rng(0)
    try:
        with (
            _file(folder, size) as path,
            _unbuffered(path) as (descriptor, how),
            ThreadPoolExecutor(max(LANES)) as pool,
        ):

            def one(length: int, place: int) -> None:
                with mmap.mmap(-1, length) as target:  # on a page's boundary, as reads past all caches must be
                    done = os.preadv(descriptor, [target], place)
                if done != length:
                    raise HardwareError(f"{path} was read in part: {done} of {length} bytes")

            def together(length: int, reads: int) -> float:
                places = (rng.integers(0, size // length, reads) * length).tolist()
                if how != DIRECT:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                start = perf_counter_ns()
                if reads == 1:
                    one(length, places[0])
                else:
                    for read in [pool.submit(one, length, place) for place in places]:
                        read.result()
                return float(perf_counter_ns() - start)

            asked = ((piece, 1), (PAGE, 1), *((piece, reads) for reads in LANES))
            samples = repeated(lambda _: [together(*each) for each in asked], repeats)
    except OSError as error:
        raise HardwareError(f"the disk of {folder} cannot be measured: {error.strerror or error}") from None
    names = [
        f"disk, reading {length} bytes" if reads == 1 else f"disk, {reads} reads of {length} bytes together"
        for length, reads in asked
    ]
    large, page, *lanes = (Figure.of(name, found) for name, found in zip(names, samples, strict=True))
    rate = clamp(piece * SECOND / max(large.ns - page.ns, large.ns / 100), 1_000, 10**15)
    several = [(reads, reads * piece, figure.ns) for reads, figure in zip(LANES, lanes, strict=True)]
    return (
        [large, page, *lanes],
        Disk(
            read_bytes_per_s=rate,
            lanes=lanes_of(rate, page.ns, several),
            latency_ns=clamp(page.ns, 0, 10**10),
            host_cache_bytes=clamp(meminfo("MemAvailable"), 1 << 20, 1 << 50),
        ),
        f"disk: {how}; what the disk or the host below caches itself is not kept out",
    )


def lanes_of(alone: int, latency_ns: float, found: Sequence[tuple[int, int, float]]) -> list[Lanes]:
    """Rates by number of reads together, from (reads, bytes of all, nanoseconds); `alone` in bytes/s is one read's.

    As far as more together is more: from the first number on that gains less than a twentieth there are no more lanes.
    """
    lanes: list[Lanes] = []
    best, few = alone, 1
    for reads, size, ns in found:
        # A disk reads no more than so many times what fewer reads do: what is above is noise.
        rate = min(clamp(size * SECOND / max(ns - latency_ns, ns / 100), 1_000, 10**15), best * reads // few)
        if rate < best + best // 20:
            break
        lanes.append(Lanes(reads=reads, bytes_per_s=rate))
        best, few = rate, reads
    return lanes


DIRECT, DROPPED = "read past the system's cache (O_DIRECT)", "the system's cache was asked to drop the file first"


@contextmanager
def _file(folder: Path, size: int) -> Iterator[Path]:
    """A file of random bytes that is on the disk, removed in the end."""
    path = folder / f".tracekit-disk.{os.getpid()}"
    block = np.random.default_rng(0).integers(0, 256, 1 << 22, dtype=np.uint8).tobytes()
    try:
        with path.open("xb") as target:
            for _ in range(-(-size // len(block))):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _unbuffered(path: Path) -> Iterator[tuple[int, str]]:
    """The file, open for reading past the system's cache where it can be, and how that is done."""
    how, descriptor = DIRECT, -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, PAGE) as probe:
            os.preadv(descriptor, [probe], 0)
    except (OSError, AttributeError):  # not on every file system, nor every system
        if descriptor >= 0:
            os.close(descriptor)
        how, descriptor = DROPPED, os.open(path, os.O_RDONLY)
    try:
        yield descriptor, how
    finally:
        os.close(descriptor)
