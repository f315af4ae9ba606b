"""The disk behind the host's memory: what host memory holds, and when an expert has been read."""

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.lanes import Visit
from engine.simulator.log import DISK_READ, note
from engine.simulator.machine_state import DISK, DISK_BUSY, HEAD, HOST_USED, NEXT, PREV, TAIL, Machine
from engine.simulator.options import compiled
from policies.events import KEY_MASK, KIND_SHIFT, LOAD, PREFETCH, SLOT_MASK, SLOT_SHIFT


@compiled()
def read_all(machine: Machine, costs: Costs, visit: Visit, code: np.ndarray, first: int, last: int) -> None:
    """What the copies among events code[first:last] need of the disk, in their order."""
    for i in range(first, last):
        if LOAD <= code[i] >> KIND_SHIFT <= PREFETCH:
            read(machine, costs, visit, code[i])


@compiled()
def read(machine: Machine, costs: Costs, visit: Visit, event: int) -> None:
    """A copy is asked for: its expert becomes the host cache's most recent, read from disk if it is not there."""
    key, slot, host = event & KEY_MASK, event >> SLOT_SHIFT & SLOT_MASK, machine.host
    ends = len(host) - 1
    experts = ends // len(costs.chunks)
    if host[key, PREV] >= 0:
        unlink(host, key)
    else:
        layer = key // experts
        begin = max(machine.other[DISK], visit.routed)
        end = begin + costs.read_ns[layer]
        machine.other[DISK] = end
        machine.other[DISK_BUSY] += end - begin
        machine.other[HOST_USED] += machine.expert_bytes[layer]
        machine.ready[key] = end
        note(visit.log, DISK_READ, begin, end, visit.number, key, slot, event >> KIND_SHIFT, 0)
    head = host[ends, HEAD]
    host[key, PREV], host[key, NEXT] = ends, head
    host[head, PREV] = host[ends, HEAD] = key
    while machine.other[HOST_USED] > costs.host_bytes:
        tail = host[ends, TAIL]
        unlink(host, tail)
        machine.other[HOST_USED] -= machine.expert_bytes[tail // experts]


@compiled(inline=True)
def unlink(host: np.ndarray, key: int) -> None:
    """Take an expert out of the list."""
    prev, next_ = host[key, PREV], host[key, NEXT]
    host[prev, NEXT], host[next_, PREV] = next_, prev
    host[key, PREV] = host[key, NEXT] = -1
