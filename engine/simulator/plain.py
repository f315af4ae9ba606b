"""A visit with nothing to choose: one token, no prefetch, no disk, no CPU lane, nothing evicted that it demands.

Its time follows from counts. All earlier copies have been waited for, so the link and every slot are free when the
gate's choice is known: what the general rules would look up slot by slot is then the same for all, and only how many
experts are there, and how many are to be copied, matters. Most visits of plans without prefetching are such; they take
about half the time so.
"""

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.lanes import DEQUANTISATION, EXPERTS, OVERHEAD, STALL_DEMAND, Visit
from engine.simulator.machine_state import AHEAD, LINK_BUSY, WAITING, Machine
from engine.simulator.options import compiled
from policies.events import EVICT, HIT_PREFETCHED, HOST, KIND_SHIFT, LOAD

FIRST_PREFETCHED = HIT_PREFETCHED << KIND_SHIFT
FIRST_MISS = HOST << KIND_SHIFT
FIRST_LOAD = LOAD << KIND_SHIFT
FIRST_STREAM = (LOAD + 1) << KIND_SHIFT
FIRST_EVICT = EVICT << KIND_SHIFT
FIRST_DROP = (EVICT + 1) << KIND_SHIFT


@compiled(inline=True)
def undisturbed(machine: Machine) -> bool:
    """Whether no prefetch has ever begun and none is waiting."""
    return bool(machine.link[AHEAD] == 0 and machine.other[WAITING] == 0)


@compiled(inline=True)
def count(code: np.ndarray, e: int, end: int) -> tuple[int, int]:
    """Hits and loads of a visit's events; loads are -1 where there is anything but hits, loads and evictions."""
    hits = loads = other = 0
    for place in range(e, end):
        event = code[np.uint64(place)]  # unsigned: not to be counted from the end
        hits += event < FIRST_PREFETCHED
        loads += (event >= FIRST_LOAD) & (event < FIRST_STREAM)
        other += (event >= FIRST_PREFETCHED) & (event < FIRST_LOAD)
        other += (event >= FIRST_STREAM) & (event < FIRST_EVICT)
        other += event >= FIRST_DROP
    return hits, loads if other == 0 else -1


@compiled(inline=True)
def plain_visit(machine: Machine, costs: Costs, visit: Visit, hits: int, loads: int, call_ns: int | None) -> int:
    """Time the visit from its `routed` on; returns when it ends. `call_ns`: as the kernel's."""
    asking = loads * costs.copy_overhead_ns
    now = visit.routed + asking
    called = 0  # experts that are computed in a call before the others are there
    if call_ns is None:
        now += hits * visit.one_ns
    elif costs.overlapped > 0 and hits > 0:
        called = hits
        now += call_ns + called * visit.one_ns
    waited = 0
    wire_ns = costs.rest_ns[visit.layer, 0]
    # The rules of `link.place`, with the engines and the wire free since `routed` at the latest.
    mine = other = begun = wire = visit.routed
    for _ in range(loads):
        begin = max(wire, visit.routed)
        if costs.copy_engines > 1:
            begin = max(max(mine, begun), visit.routed)
        arrival = max(begin + costs.setup_ns, wire) + wire_ns
        machine.link[LINK_BUSY] += arrival - max(begin, wire)
        mine, other, begun, wire = other, arrival, begin, arrival
        if arrival > now:
            waited += arrival - now
            now = arrival
        if call_ns is None:
            now += visit.one_ns
    computing = (hits + loads) * visit.one_ns
    if call_ns is not None:
        if hits + loads > called:
            now += call_ns + (hits + loads - called) * visit.one_ns
            computing += call_ns
        if called > 0:
            computing += call_ns
    expanding = (hits + loads) * costs.dequant_ns[visit.layer]
    visit.booked[OVERHEAD] += asking
    visit.booked[STALL_DEMAND] += waited
    visit.booked[DEQUANTISATION] += expanding
    visit.booked[EXPERTS] += computing - expanding
    return now
