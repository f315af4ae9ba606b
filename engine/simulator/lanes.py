"""The lanes that compute: the device's stream and the CPU. Where one waits, the wait is booked to its cause."""

from typing import NamedTuple

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.cpu_lane import Lane
from engine.simulator.link import place, start
from engine.simulator.log import COPY, COPY_DEMAND, EXPERT, WAIT, Log, note
from engine.simulator.machine_state import Machine
from engine.simulator.options import compiled
from policies.events import KEY_MASK, KIND_SHIFT, SLOT_MASK, SLOT_SHIFT

CAUSES = ("dense", "experts", "dequantisation", "overhead", "demand", "late_prefetch", "link_busy", "disk", "cpu")
"""Where the time of a step goes: work of the compute stream, then stalls."""
DENSE, EXPERTS, DEQUANTISATION, OVERHEAD, STALL_DEMAND, STALL_LATE, STALL_LINK, STALL_DISK, STALL_CPU = range(9)
STALLS = STALL_DEMAND
"""The first cause that is a stall."""


class Visit(NamedTuple):
    """The visit that is being timed, and where its time is written down."""

    number: int  # running number
    layer: int
    routed: int  # when the gate's choice is known
    several: bool  # the step has more than one token
    one_ns: int  # one token in one expert
    booked: np.ndarray  # i64 [causes]: the step's time by cause
    log: Log | None


@compiled(inline=True)
def expert_ns(costs: Costs, layer: int, tokens: int) -> int:
    """One expert on the device, its dequantisation included."""
    arithmetic = tokens * costs.expert_token_ps // 1000
    return int(max(costs.expert_ns[layer], arithmetic) + costs.expert_overhead_ns + costs.dequant_ns[layer])


@compiled(inline=True)
def device_ns(machine: Machine, costs: Costs, visit: Visit, event: int) -> int:
    """The demanded expert on the device."""
    if visit.several:
        return expert_ns(costs, copy_layer(costs.low, costs, visit, event), machine.tokens[event & KEY_MASK])
    return visit.one_ns if costs.low is None else expert_ns(costs, copy_layer(costs.low, costs, visit, event), 1)


@compiled(inline=True)
def copy_layer(low: int | None, costs: Costs, visit: Visit, event: int) -> int:
    """Where the costs of the event's copy stand: at its visit's layer, those of a low copy so many layers behind.

    `low` is that of `costs`: handed over by itself, so that nothing is compiled for it where there are no two copies.
    """
    if low is None:
        return visit.layer
    return visit.layer + len(costs.chunks) // 2 * ((event & KEY_MASK) >= low)


@compiled(inline=True)
def expand_low(low: int | None, costs: Costs, visit: Visit, event: int) -> None:
    """What `book` takes for the expanding of a high copy is not what a low one takes: mend it."""
    if low is not None:
        more = costs.dequant_ns[copy_layer(low, costs, visit, event)] - costs.dequant_ns[visit.layer]
        visit.booked[DEQUANTISATION] += more
        visit.booked[EXPERTS] -= more


@compiled(inline=True)
def cpu_ns(machine: Machine, costs: Costs, visit: Visit, event: int) -> int:
    """The demanded expert on the CPU."""
    tokens = machine.tokens[event & KEY_MASK] if visit.several else 1
    return int(max(costs.cpu_expert_ns[visit.layer], tokens * costs.cpu_token_ps // 1000) + costs.cpu_overhead_ns)


@compiled(inline=True)
def compute(machine: Machine, costs: Costs, visit: Visit, event: int, now: int) -> int:
    """Compute an expert on the device from `now` on; returns when it ends."""
    slot = event >> SLOT_SHIFT & SLOT_MASK
    end = now + device_ns(machine, costs, visit, event)
    machine.idle[slot] = end
    expand_low(costs.low, costs, visit, event)
    note(visit.log, EXPERT, now, end, visit.number, event & KEY_MASK, slot, event >> KIND_SHIFT, 0)
    return end


@compiled(inline=True)
def book(costs: Costs, visit: Visit, experts: int, duration: int) -> None:
    """The device computed so many experts in `duration`, expanded as the high copies of the layer's are."""
    expanding = experts * costs.dequant_ns[visit.layer]
    visit.booked[DEQUANTISATION] += expanding
    visit.booked[EXPERTS] += duration - expanding


@compiled(inline=True)
def wait(visit: Visit, cause: int, now: int, until: int, event: int) -> int:
    """The device waits for `event`, for the CPU if it is -1; returns when it goes on."""
    if until <= now:
        return now
    visit.booked[cause] += until - now
    key, slot = (event & KEY_MASK, event >> SLOT_SHIFT & SLOT_MASK) if event >= 0 else (-1, -1)
    note(visit.log, WAIT, now, until, visit.number, key, slot, cause, 0)
    return until


@compiled(inline=True)
def serve(
    machine: Machine, costs: Costs, lane: Lane | None, visit: Visit, event: int, now: int, blocked: int
) -> tuple[int, int]:
    """A demanded expert that is missing is copied and waited for.

    Returns when it can be computed, and how much of a wait may still be booked to copies ahead that are under way.
    """
    slot, key = event >> SLOT_SHIFT & SLOT_MASK, event & KEY_MASK
    copy_ns = costs.rest_ns[copy_layer(costs.low, costs, visit, event), 0]
    earliest = max(max(visit.routed, machine.idle[slot]), machine.arrival[slot])
    engine, begin, arrival = place(machine, costs, lane, earliest, copy_ns, visit.log)
    put_off = 0
    if costs.host_bytes >= 0:
        without_disk = begin
        there = max(earliest, machine.ready[key])
        engine, begin, arrival = place(machine, costs, lane, there, copy_ns, visit.log)
        put_off = begin - without_disk
    copy(machine, visit, event, engine, begin, arrival)
    if arrival > now:
        behind = min(arrival - now, blocked)
        disk = min(arrival - now - behind, put_off)
        now = wait(visit, STALL_LINK, now, now + behind, event)
        now = wait(visit, STALL_DISK, now, now + disk, event)
        now = wait(visit, STALL_DEMAND, now, arrival, event)
        blocked -= behind
    return now, blocked


@compiled(inline=True)
def copy(machine: Machine, visit: Visit, event: int, engine: int, begin: int, arrival: int) -> None:
    """A demand load begins as placed."""
    slot = event >> SLOT_SHIFT & SLOT_MASK
    start(machine, engine, begin, arrival)
    machine.arrival[slot] = arrival
    machine.ahead[slot] = 0
    note(visit.log, COPY, begin, arrival, visit.number, event & KEY_MASK, slot, COPY_DEMAND, engine)
