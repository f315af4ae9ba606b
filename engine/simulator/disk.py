"""The disk behind the host's memory: what host memory holds, and when an expert has been read."""

from numba import njit

from engine.simulator.log import DISK_READ, note
from engine.simulator.machine_state import DISK, DISK_BUSY, HOST_USED
from engine.simulator.options import INLINED, OPTIONS
from policies.events import KEY_MASK, KIND_SHIFT, LOAD, PREFETCH, SLOT_MASK, SLOT_SHIFT


@njit(**OPTIONS)
def read_all(machine, costs, visit, code, first, last, log):  # type: ignore[no-untyped-def]
    """What the copies among events code[first:last] need of the disk, in their order."""
    for i in range(first, last):
        if LOAD <= code[i] >> KIND_SHIFT <= PREFETCH:
            read(machine, costs, visit, code[i], log)


@njit(**OPTIONS)
def read(machine, costs, visit, event, log):  # type: ignore[no-untyped-def]
    """A copy is asked for: its expert becomes the host cache's most recent, read from disk if it is not there."""
    key, host = event & KEY_MASK, machine.host
    ends = len(host) - 1
    experts = ends // len(costs.chunks)
    if host[key, 0] >= 0:
        unlink(host, key)
    else:
        layer = key // experts
        begin = max(machine.other[DISK], visit.routed)
        end = begin + costs.read_ns[layer]
        machine.other[DISK] = end
        machine.other[DISK_BUSY] += end - begin
        machine.other[HOST_USED] += costs.expert_bytes[layer]
        machine.ready[key] = end
        note(log, DISK_READ, begin, end, visit.number, key, event >> SLOT_SHIFT & SLOT_MASK, event >> KIND_SHIFT, 0)
    last = host[ends, 1]
    host[key, 0], host[key, 1] = ends, last
    host[last, 0] = host[ends, 1] = key
    while machine.other[HOST_USED] > costs.host_bytes:
        oldest = host[ends, 0]
        unlink(host, oldest)
        machine.other[HOST_USED] -= costs.expert_bytes[oldest // experts]


@njit(**INLINED)
def unlink(host, key):  # type: ignore[no-untyped-def]
    """Take an expert out of the list."""
    newer, older = host[key, 0], host[key, 1]
    host[newer, 1], host[older, 0] = older, newer
    host[key, 0] = host[key, 1] = -1
