"""What experts on the host and copies to the device cost each other, measured while both run: they share its memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import perf_counter_ns

import torch
from torch import Tensor

from engine.runtime.calibration import probes
from engine.runtime.calibration.probes import Figure, clamp
from engine.runtime.calibration.repeated import repeated
from engine.runtime.links.cuda_link import CudaLink
from engine.runtime.links.queued_link import QueuedLink, Source
from engine.runtime.links.thread_link import ThreadLink

COPY_BYTES = 1 << 23
MOST = 64
"""Experts, or copies, that run beside a measured one, at most."""


def beside(device: torch.device, dtype: torch.dtype, repeats: int) -> tuple[list[Figure], int, int]:
    """Figures of an expert of one token on the host and of a copy to `device`, each alone and beside the other; then by
    how many percent the expert is longer beside copies, and the copy beside experts.

    Raises HardwareError where there is no memory to measure with.
    """
    pinned, cold = device.type == "cuda", max(probes.COLD_BYTES, 2 * COPY_BYTES)
    host = probes.buffer(cold, torch.device("cpu"), pinned=pinned)
    target = probes.buffer(COPY_BYTES, device)
    link: QueuedLink = CudaLink(device) if pinned else ThreadLink()
    run, rows = probes.gated(torch.device("cpu"), dtype), torch.randn(1, probes.WIDTH, dtype=dtype)
    number, place = count(), count()

    def expert() -> None:
        run(next(number), rows)

    def several(experts: int) -> None:
        with torch.inference_mode():  # a thread's own
            for _ in range(experts):
                expert()

    def piece() -> tuple[Source, Tensor]:
        begin = next(place) % (cold // COPY_BYTES) * COPY_BYTES
        return host[begin : begin + COPY_BYTES], target

    def landed() -> None:
        if device.type == "cuda":  # the link's waits are the stream's, not the host's
            torch.cuda.synchronize(device)

    def copy() -> None:
        probes.burst(link, [piece()])
        landed()

    def taken(work: Callable[[], object]) -> float:
        start = perf_counter_ns()
        work()
        return float(perf_counter_ns() - start)

    def turn(_: int) -> list[float]:
        alone, copied = taken(expert), taken(copy)
        # As many of the other as outlast the measured one twice.
        copies = clamp(2 * alone / max(copied, 1.0) + 1, 2, MOST)
        experts = clamp(2 * copied / max(alone, 1.0) + 1, 2, MOST)
        tickets = link.copies([(*piece(), True) for _ in range(copies)])
        beside_copies = taken(expert)
        for ticket in tickets:
            link.wait(ticket)
        landed()
        computing = pool.submit(several, experts)
        beside_experts = taken(copy)
        computing.result()
        return [alone, beside_copies, copied, beside_experts]

    threads = (torch.set_num_threads, (torch.get_num_threads(),))
    try:
        with torch.inference_mode(), ThreadPoolExecutor(1, "beside", *threads) as pool:
            samples = repeated(turn, repeats)
    finally:
        link.close()
    expert_names = ["an expert of one token", "the same beside copies"]
    names = [*expert_names, f"a copy of {COPY_BYTES} bytes", "the same beside experts on the CPU"]
    found = [Figure.of(f"CPU lane and link, {name}", some) for name, some in zip(names, samples, strict=True)]
    return found, _longer(found[1], found[0]), _longer(found[3], found[2])


def _longer(beside: Figure, alone: Figure) -> int:
    """By how many percent; 0 where it is none."""
    return clamp(100 * (beside.ns / max(alone.ns, 1.0) - 1), 0, 1_000)
