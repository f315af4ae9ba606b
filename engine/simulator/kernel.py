"""The kernel: whole steps, visit by visit, by the rules in engine.simulator.timeline."""

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.cpu_lane import (
    COUNT,
    FREE,
    Lane,
    add_job,
    begin_jobs,
    contended,
    hand_over,
    next_begin,
)
from engine.simulator.disk import read_all
from engine.simulator.fused import call, gather, is_gathered
from engine.simulator.lanes import (
    DENSE,
    OVERHEAD,
    STALL_CPU,
    STALL_DEMAND,
    STALL_DISK,
    STALL_LATE,
    Visit,
    book,
    compute,
    cpu_ns,
    expert_ns,
    serve,
    wait,
)
from engine.simulator.link import advance, enqueue, give_up, promote
from engine.simulator.log import ASKING, DENSE_PART, OVERHEAD_PART, Log, note
from engine.simulator.machine_state import AHEAD, CPU_BUSY, FAR, NOW, WAITING, Host, Machine
from engine.simulator.options import compiled
from engine.simulator.plain import FIRST_MISS, FIRST_PREFETCHED, count, plain_visit, undisturbed
from policies.events import ADMIT, BYPASS, EVICT, HOST, KEY_MASK, KIND_SHIFT, LOAD, PREFETCH, SLOT_MASK, SLOT_SHIFT

USEFUL, LATE, WASTED = range(3)
"""What became of a prefetch: there when its expert was demanded, not yet there, given up unused."""


@compiled(kept=True)
def run(
    machine: Machine,
    costs: Costs,
    demand: tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    events: tuple[np.ndarray, np.ndarray, bool],
    context: np.ndarray,
    first_visit: int,
    log: Log | None,
    call_ns: int | None,
    host: Host | None,
    lane: Lane | None,
    visit_end: np.ndarray,
    spent: np.ndarray,
    totals: np.ndarray,
    prefetches: np.ndarray,
) -> None:
    """Time whole steps. Writes visit_end [visits], adds to spent [steps, causes], totals [2, causes] and prefetches.

    Each is None where the machine has no such thing, and then no code for it is compiled: `call_ns`, where experts are
    fused, what a call takes whatever it computes (engine.simulator.fused); `host`, where the cache's own work takes
    time or the disk makes several reads at a time; `lane`, where the host computes misses.
    """
    layers, begins, keys, tokens, step_tokens, phases = demand
    code, first, orderly = events
    now = machine.other[NOW]
    plain = log is None and orderly and costs.host_bytes < 0 and costs.low is None
    for step in range(len(step_tokens)):
        several = step_tokens[step] > 1
        context_ns = context[step] * costs.context_ps // 1000
        arithmetic_ns = step_tokens[step] * costs.dense_token_ps // 1000
        booked = spent[step]
        for layer in range(layers):
            v = step * layers + layer
            number = first_visit + v
            e, end = first[v], first[v + 1]
            if several:
                for i in range(begins[v], begins[v + 1]):
                    machine.tokens[keys[i]] = tokens[i]

            dense = max(costs.dense_ns[layer] + context_ns, arithmetic_ns)
            if layer == 0:
                dense += costs.step_ns
            predicting = costs.predict_ns[layer] + step_tokens[step] * costs.predict_token_ps // 1000
            overhead = costs.layer_overhead_ns + costs.readback_ns + predicting
            if host is not None:
                overhead += manage(code, e, end, host)
            routed = now + dense + overhead
            visit = Visit(number, layer, routed, several, expert_ns(costs, layer, 1), booked, log)
            booked[DENSE] += dense
            booked[OVERHEAD] += overhead
            if plain and not several and undisturbed(machine):
                hits, loads = count(code, e, end)
                if loads >= 0:
                    now = plain_visit(machine, costs, visit, hits, loads, call_ns)
                    visit_end[v] = now
                    continue
            note(log, DENSE_PART, now, now + dense, number, -1, -1, 0, 0)
            note(log, OVERHEAD_PART, now + dense, routed, number, -1, -1, 0, 0)
            if machine.other[WAITING] > 0:
                advance(machine, costs, lane, routed, log)
            blocked = max(0, machine.link[AHEAD] - routed)
            if costs.host_bytes >= 0:
                read_all(machine, costs, visit, code, e, end, host)
            now = routed
            if costs.copy_overhead_ns > 0:
                now = ask(costs, visit, code, e, end)
            asked = now
            cpu_busy = machine.other[CPU_BUSY]
            if lane is not None:
                hand_over(lane, number, asked)
                for place in range(e, end):
                    event = code[place]
                    kind = event >> KIND_SHIFT
                    if kind in (HOST, ADMIT):
                        ready = machine.ready[event & KEY_MASK]
                        add_job(lane, event, cpu_ns(machine, costs, visit, event), ready)

            # Hits: compute what is there, put what is not in order of arrival.
            waiting = gathered = 0
            while e < end:
                event = code[np.uint64(e)]  # unsigned: not to be counted from the end
                if event >= FIRST_MISS:
                    break
                slot = event >> SLOT_SHIFT & SLOT_MASK
                there = machine.arrival[slot] <= routed
                if event >= FIRST_PREFETCHED:
                    prefetches[USEFUL if there else LATE] += 1
                    machine.unused[slot] = 0
                if there:
                    if call_ns is None:
                        now = compute(machine, costs, visit, event, now)
                    else:
                        gathered = gather(machine, event, gathered)
                else:
                    # A copy under way is one that this visit waits for: it is in nobody's way.
                    if machine.arrival[slot] != FAR or promote(machine, costs, lane, slot, routed, log):
                        blocked = 0
                    insert(machine.late, waiting, machine.arrival[slot], e)
                    waiting += 1
                e += 1
            if call_ns is None:
                book(costs, visit, e - first[v] - waiting, now - asked)
            elif costs.overlapped > 0:
                now = call(machine, costs, visit, gathered, now, call_ns)
                gathered = 0
            for w in range(waiting):
                event = code[machine.late[w, 1]]
                cause = STALL_LATE if machine.ahead[event >> SLOT_SHIFT & SLOT_MASK] else STALL_DEMAND
                now = wait(visit, cause, now, machine.late[w, 0], event)
                if call_ns is None:
                    done = compute(machine, costs, visit, event, now)
                    book(costs, visit, 1, done - now)
                    now = done
                else:
                    gathered = gather(machine, event, gathered)
                    if several and costs.overlapped > 0:
                        now = call(machine, costs, visit, gathered, now, call_ns)
                        gathered = 0

            while e < end:
                event = code[np.uint64(e)]
                kind, slot = event >> KIND_SHIFT, event >> SLOT_SHIFT & SLOT_MASK
                if LOAD <= kind <= BYPASS:
                    if call_ns is not None and is_gathered(machine, event):
                        now = call(machine, costs, visit, gathered, now, call_ns)
                        gathered = 0
                    now, blocked = serve(machine, costs, lane, visit, event, now, blocked)
                    if call_ns is None:
                        done = compute(machine, costs, visit, event, now)
                        book(costs, visit, 1, done - now)
                        now = done
                    else:
                        gathered = gather(machine, event, gathered)
                        if several and costs.overlapped > 0:
                            now = call(machine, costs, visit, gathered, now, call_ns)
                            gathered = 0
                elif ADMIT <= kind <= PREFETCH:
                    if call_ns is not None and (kind == PREFETCH or is_gathered(machine, event)):
                        now = call(machine, costs, visit, gathered, now, call_ns)
                        gathered = 0
                    enqueue(
                        machine, costs, number, len(costs.chunks), event & KEY_MASK, slot, routed, int(kind == PREFETCH)
                    )
                elif kind >= EVICT:
                    if machine.unused[slot]:
                        prefetches[WASTED] += 1
                        machine.unused[slot] = 0
                    if machine.arrival[slot] == FAR:
                        give_up(machine, slot, routed)
                e += 1
            if call_ns is not None:
                now = call(machine, costs, visit, gathered, now, call_ns)
            cpu = routed
            if lane is not None and lane.state[COUNT] > 0:
                while contended(costs) and next_begin(lane) < FAR:
                    begin = next_begin(lane)
                    advance(machine, costs, lane, begin, log)
                    begin_jobs(lane, machine, costs, begin, log)
                begin_jobs(lane, machine, costs, FAR, log)
                cpu = lane.state[FREE]
            if cpu > now:
                idle = cpu - asked - (machine.other[CPU_BUSY] - cpu_busy)
                now = wait(visit, STALL_DISK, now, min(cpu, now + idle), -1)
                now = wait(visit, STALL_CPU, now, cpu, -1)
            visit_end[v] = now
        for cause in range(len(booked)):
            totals[phases[step], cause] += booked[cause]
    machine.other[NOW] = now


@compiled()
def manage(code: np.ndarray, e: int, end: int, host: Host) -> int:
    """What the cache takes of a visit: each demanded expert is looked up, room is found for each load and prefetch."""
    lookups = inserts = 0
    for i in range(e, end):
        kind = code[i] >> KIND_SHIFT
        lookups += kind <= ADMIT
        inserts += kind in (LOAD, ADMIT, PREFETCH)
    return lookups * host.lookup_ns + inserts * host.insert_ns


@compiled()
def ask(costs: Costs, visit: Visit, code: np.ndarray, e: int, end: int) -> int:
    """The host asks for the visit's copies; returns when it has."""
    copies = 0
    for i in range(e, end):
        if LOAD <= code[i] >> KIND_SHIFT <= PREFETCH:
            copies += 1
    duration = copies * costs.copy_overhead_ns
    visit.booked[OVERHEAD] += duration
    if copies > 0:
        note(visit.log, ASKING, visit.routed, visit.routed + duration, visit.number, -1, -1, copies, 0)
    return visit.routed + duration


@compiled()
def insert(late: np.ndarray, count: int, arrival: int, event: int) -> None:
    """Put an event behind those of the same arrival or an earlier one."""
    place = count
    while place > 0 and late[place - 1, 0] > arrival:
        late[place, 0], late[place, 1] = late[place - 1, 0], late[place - 1, 1]
        place -= 1
    late[place, 0], late[place, 1] = arrival, event
