"""The lanes that compute: the device's stream and the CPU. Where one waits, the wait is booked to its cause."""

from collections import namedtuple

from numba import njit

from engine.simulator.link import place, start
from engine.simulator.log import COPY, COPY_DEMAND, CPU_EXPERT, EXPERT, WAIT, note
from engine.simulator.machine_state import CPU_BUSY
from engine.simulator.options import INLINED
from policies.events import KEY_MASK, KIND_SHIFT, LOAD, SLOT_MASK, SLOT_SHIFT

CAUSES = ("dense", "experts", "dequantisation", "overhead", "demand", "late_prefetch", "link_busy", "disk", "cpu")
"""Where the time of a step goes: work of the compute stream, then stalls."""
DENSE, EXPERTS, DEQUANTISATION, OVERHEAD, STALL_DEMAND, STALL_LATE, STALL_LINK, STALL_DISK, STALL_CPU = range(9)
STALLS = STALL_DEMAND
"""The first cause that is a stall."""

Visit = namedtuple(
    "Visit",
    [
        "number",  # running number
        "layer",
        "routed",  # when the gate's choice is known
        "several",  # bool: the step has more than one token
        "one_ns",  # one token in one expert
    ],
)


@njit(**INLINED)
def expert_ns(costs, layer, tokens):  # type: ignore[no-untyped-def]
    """One expert on the device, its dequantisation included."""
    arithmetic = tokens * costs.expert_token_ps // 1000
    return max(costs.expert_ns[layer], arithmetic) + costs.expert_overhead_ns + costs.dequant_ns[layer]


@njit(**INLINED)
def device_ns(machine, costs, visit, event):  # type: ignore[no-untyped-def]
    """The demanded expert on the device."""
    if visit.several:
        return expert_ns(costs, visit.layer, machine.tokens[event & KEY_MASK])
    return visit.one_ns


@njit(**INLINED)
def cpu_ns(machine, costs, visit, event):  # type: ignore[no-untyped-def]
    """The demanded expert on the CPU."""
    tokens = machine.tokens[event & KEY_MASK] if visit.several else 1
    return max(costs.cpu_expert_ns[visit.layer], tokens * costs.cpu_token_ps // 1000) + costs.cpu_overhead_ns


@njit(**INLINED)
def compute(machine, costs, log, visit, event, now):  # type: ignore[no-untyped-def]
    """Compute an expert on the device from `now` on; returns when it ends."""
    slot = event >> SLOT_SHIFT & SLOT_MASK
    end = now + device_ns(machine, costs, visit, event)
    machine.idle[slot] = end
    note(log, EXPERT, now, end, visit.number, event & KEY_MASK, slot, event >> KIND_SHIFT, 0)
    return end


@njit(**INLINED)
def book(costs, booked, visit, experts, duration):  # type: ignore[no-untyped-def]
    """The device computed so many experts in `duration`."""
    expanding = experts * costs.dequant_ns[visit.layer]
    booked[DEQUANTISATION] += expanding
    booked[EXPERTS] += duration - expanding


@njit(**INLINED)
def wait(booked, log, visit, cause, now, until, event):  # type: ignore[no-untyped-def]
    """The device waits for `event`, for the CPU if it is -1; returns when it goes on."""
    if until <= now:
        return now
    booked[cause] += until - now
    key, slot = (event & KEY_MASK, event >> SLOT_SHIFT & SLOT_MASK) if event >= 0 else (-1, -1)
    note(log, WAIT, now, until, visit.number, key, slot, cause, 0)
    return until


@njit(**INLINED)
def serve(machine, costs, booked, log, visit, event, now, cpu, blocked):  # type: ignore[no-untyped-def]
    """A demanded expert that is missing: copied and computed, or computed by the CPU if that ends sooner.

    Returns when device and CPU are free, and how much of a wait may still be booked to prefetches under way.
    """
    kind, slot, key = event >> KIND_SHIFT, event >> SLOT_SHIFT & SLOT_MASK, event & KEY_MASK
    copy_ns = costs.rest_ns[visit.layer, 0]
    earliest = max(max(visit.routed, machine.idle[slot]), machine.arrival[slot])
    engine, begin, arrival = place(machine, costs, earliest, copy_ns)
    put_off = 0
    if costs.host_bytes >= 0:
        without_disk = begin
        engine, begin, arrival = place(machine, costs, max(earliest, machine.ready[key]), copy_ns)
        put_off = begin - without_disk

    if costs.cpu > 0:
        cpu_begin = max(cpu, machine.ready[key])
        cpu_end = cpu_begin + cpu_ns(machine, costs, visit, event)
        if cpu_end < max(now, arrival) + device_ns(machine, costs, visit, event):
            machine.other[CPU_BUSY] += cpu_end - cpu_begin
            note(log, CPU_EXPERT, cpu_begin, cpu_end, visit.number, key, slot, kind, 0)
            if kind == LOAD:
                copy(machine, log, visit, event, engine, begin, arrival)
            return now, cpu_end, blocked

    copy(machine, log, visit, event, engine, begin, arrival)
    if arrival > now:
        behind = min(arrival - now, blocked)
        disk = min(arrival - now - behind, put_off)
        now = wait(booked, log, visit, STALL_LINK, now, now + behind, event)
        now = wait(booked, log, visit, STALL_DISK, now, now + disk, event)
        now = wait(booked, log, visit, STALL_DEMAND, now, arrival, event)
        blocked -= behind
    end = compute(machine, costs, log, visit, event, now)
    book(costs, booked, visit, 1, end - now)
    return end, cpu, blocked


@njit(**INLINED)
def copy(machine, log, visit, event, engine, begin, arrival):  # type: ignore[no-untyped-def]
    """A demand load begins as placed."""
    slot = event >> SLOT_SHIFT & SLOT_MASK
    start(machine, engine, begin, arrival)
    machine.arrival[slot] = arrival
    machine.ahead[slot] = 0
    note(log, COPY, begin, arrival, visit.number, event & KEY_MASK, slot, COPY_DEMAND, engine)
