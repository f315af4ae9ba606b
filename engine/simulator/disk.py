"""The disk behind the host's memory: what host memory holds, and when an expert has been read."""

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.lanes import Visit
from engine.simulator.log import DISK_READ, note
from engine.simulator.machine_state import DISK, DISK_BUSY, HEAD, HOST_USED, NEXT, PREV, TAIL, Host, Machine
from engine.simulator.options import compiled
from policies.events import HOST, KEY_MASK, KIND_SHIFT, PREFETCH, SIGN, SLOT_SHIFT


@compiled()
def read_all(
    machine: Machine, costs: Costs, visit: Visit, code: np.ndarray, first: int, last: int, host: Host | None
) -> None:
    """What the misses and copies among events code[first:last] need of the disk, in their order.

    Without `host` the disk reads one expert at a time, and no code for lanes is compiled.
    """
    for i in range(first, last):
        if HOST <= code[i] >> KIND_SHIFT <= PREFETCH:
            read(machine, costs, visit, code[i], host)


@compiled()
def read(machine: Machine, costs: Costs, visit: Visit, event: int, host: Host | None) -> None:
    """A copy is asked for: its expert becomes the host cache's most recent, read from disk if it is not there."""
    key, slot, held = event & KEY_MASK, event << SIGN >> SIGN + SLOT_SHIFT, machine.host  # -1: no slot
    ends = len(held) - 1
    experts = ends // len(costs.chunks)
    if held[key, PREV] >= 0:
        unlink(held, key)
    else:
        layer = key // experts
        if host is None:
            begin = max(machine.other[DISK], visit.routed)
            end = begin + costs.read_ns[layer]
            machine.other[DISK] = end
            machine.other[DISK_BUSY] += end - begin
        else:
            begin, end = in_lane(host.lanes, visit.routed, costs.lanes_ns[layer])
            machine.other[DISK_BUSY] += max(0, end - max(begin, machine.other[DISK]))
            machine.other[DISK] = max(end, machine.other[DISK])
        machine.other[HOST_USED] += machine.expert_bytes[layer]
        machine.ready[key] = end
        note(visit.log, DISK_READ, begin, end, visit.number, key, slot, event >> KIND_SHIFT, 0)
    head = held[ends, HEAD]
    held[key, PREV], held[key, NEXT] = ends, head
    held[head, PREV] = held[ends, HEAD] = key
    while machine.other[HOST_USED] > costs.host_bytes:
        tail = held[ends, TAIL]
        unlink(held, tail)
        machine.other[HOST_USED] -= machine.expert_bytes[tail // experts]


@compiled()
def in_lane(lanes: np.ndarray, asked: int, read_ns: np.ndarray) -> tuple[int, int]:
    """Begin and end of the next read: in the lane that is free first, as long as so many reads under way make it.

    Reads begin in the order asked, so nothing that is asked later can be under way when this one begins.
    """
    first = 0
    for lane in range(1, len(lanes)):
        if lanes[lane] < lanes[first]:
            first = lane
    begin, others = max(lanes[first], asked), 0
    for lane in range(len(lanes)):
        others += lanes[lane] > begin
    end = begin + read_ns[others]
    lanes[first] = end
    return begin, end


@compiled(inline=True)
def unlink(host: np.ndarray, key: int) -> None:
    """Take an expert out of the list."""
    prev, next_ = host[key, PREV], host[key, NEXT]
    host[prev, NEXT], host[next_, PREV] = next_, prev
    host[key, PREV] = host[key, NEXT] = -1
