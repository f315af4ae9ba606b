"""The host's memory and disk as costs: what it holds of experts and dense weights, what faults, how long reads take."""

from typing import NamedTuple

import numpy as np

from engine.hardware import HardwareProfile
from engine.hardware.host import divided
from engine.hardware.roofline import ceil_ns
from engine.simulator.fits import each


class HostMemory(NamedTuple):
    """`experts`: bytes of the host's cache, -1 where it holds all; of `dense` bytes `faulted` are read at every step,
    at `rate` bytes/s. Bytes are those of the trace's layers."""

    experts: int
    faulted: int = 0
    dense: int = 0
    rate: int = 1
    notes: tuple[str, ...] = ()

    def fault_ns(self, size: int) -> int:
        """Nanoseconds in which the part of a dense read that memory does not hold comes from the disk: one after the
        other and ahead of all else, as by a fault, so that no read of experts runs beside it. Rounded up."""
        if not self.faulted:
            return 0
        return ceil_ns(-(-size * self.faulted // self.dense), self.rate)


def host_memory(
    hardware: HardwareProfile,
    scale: float,
    expert_bytes: list[int],
    counts: list[int],
    dense_bytes: list[int],
    head_bytes: int,
) -> HostMemory:
    """How the host's memory is divided between experts and dense weights, with a note where it is too small.

    `counts`: how many experts take each of `expert_bytes`. `scale` is the number of the model's layers over the
    trace's; other sizes are the trace's.
    """
    disk, host = hardware.disk, hardware.host
    all_experts = sum(size * count for size, count in zip(expert_bytes, counts, strict=True))
    wanted = all_experts if disk is None else min(int(disk.host_cache_bytes / scale), all_experts)
    if host is None:
        return HostMemory(-1 if disk is None else int(disk.host_cache_bytes / scale))
    dense = sum(dense_bytes) + head_bytes
    room = divided(host, int(wanted * scale), int(dense * scale))
    free = (host.memory_bytes - host.reserved_bytes) / 2**30
    if disk is None:
        needed = (int(wanted * scale) + (int(dense * scale) if host.holds_dense else 0)) / 2**30
        short = (
            () if needed <= free else (_short(needed, free, "and the profile has no [disk] to fault from: not timed"),)
        )
        return HostMemory(-1, notes=short)
    experts, faulted = int(room.experts / scale), min(int(room.faulted / scale), dense)
    notes = []
    if room.experts < int(wanted * scale):
        kept = f"experts get {room.experts / 2**30:.2f} GiB of the {wanted * scale / 2**30:.2f} GiB they are given"
        notes.append(_short(wanted * scale / 2**30, free, kept))
    if faulted:
        needed = (room.experts + dense * scale) / 2**30
        again = f"{room.faulted / 2**30:.2f} GiB of dense weights are read from disk again at every step"
        notes.append(_short(needed, free, f"{again}; give the experts' cache less"))
    return HostMemory(experts, faulted, dense, disk.read_bytes_per_s, tuple(notes))


def _short(needed: float, free: float, so: str) -> str:
    return f"host memory is too small: {needed:.2f} GiB are to lie in {max(free, 0):.2f} GiB, {so}"


def lanes_ns(hardware: HardwareProfile, expert_bytes: list[int]) -> np.ndarray:
    """i64 [layers, lanes]: reading one expert if so many reads are under way when it begins.

    As many lanes as the disk has and the engine uses.
    """
    disk = hardware.disk
    if disk is None:
        return np.zeros((len(expert_bytes), 1), np.int64)
    columns = [
        each("disk.lanes", [disk.read_ns(size, reads) for size in expert_bytes])
        for reads in range(1, min(disk.most_reads, hardware.engine.disk_reads) + 1)
    ]
    return np.stack(columns, axis=1)
