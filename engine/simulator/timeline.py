"""The timeline: when each decision happens on a machine with one compute stream and one link.

All times are integer nanoseconds. The rules, in the order a visit meets them (docs/design.md draws them):

1. The dense part runs on the compute stream; then the gate's choice is read back: that instant is `routed`.
2. Up to `routed` the link starts queued prefetches, first in first out; at `routed` itself demand goes first. A copy
   that has started is never aborted.
3. Demanded experts whose prefetch is still queued, then the visit's demand loads, are copied in event order. No
   prefetch starts before them. A copy waits until its slot is free of the computation that used it last.
4. Asking for the visit's copies, prefetches included, takes the host a fixed time each; nothing is computed meanwhile.
   Then experts that were there at `routed` are computed, in event order, and the others in the order of arrival.
5. The visit's own prefetches join the queue.
"""

from collections import namedtuple
from typing import Any

import numpy as np
from numba import njit

from engine.simulator.costs import Costs
from policies.events import (
    DROP,
    EVICT,
    HIT_PREFETCHED,
    KEY_MASK,
    KIND_SHIFT,
    LOAD,
    PREFETCH,
    SLOT_MASK,
    SLOT_SHIFT,
    STREAM,
    Events,
)
from tracekit.demand import Demand

# Where the time of a step goes: columns of `Timeline.spent`.
DENSE, EXPERTS, OVERHEAD, STALL_DEMAND, STALL_LATE, STALL_LINK = range(6)
CAUSES = ("dense", "experts", "overhead", "demand", "late_prefetch", "link_busy")

# What became of a prefetch: columns of `Timeline.prefetches`.
USEFUL, LATE, WASTED = range(3)

MachineState = namedtuple(
    "MachineState",
    [
        "clock",  # i64 [3]: compute stream free, link free, link free of prefetches
        "arrival",  # i64 [slots]: when the slot's expert is there
        "idle",  # i64 [slots]: when the last computation that uses the slot ends
        "queued",  # u8 [slots]: the slot's copy waits in the queue
        "unused",  # u8 [slots]: the slot's expert was prefetched and not demanded since
        "queue",  # i64 [slots, 2]: waiting prefetches, oldest first: slot, time of request
        "queue_length",  # i64 [1]
        "layer_of",  # i32 [slots]: layer of the expert that the slot's copy brings
        "late",  # i64 [slots, 2]: scratch: arrival, event
        "link_busy",  # i64 [1]: total time the link has been copying
    ],
)

CostArrays = namedtuple(
    "CostArrays",
    [
        "copy_ns",
        "expert_ns",
        "dense_ns",
        "expert_token_ps",
        "expert_overhead_ns",
        "dense_token_ps",
        "context_ps",
        "copy_overhead_ns",
        "layer_overhead_ns",
        "readback_ns",
        "step_ns",
    ],
)


class Timeline:
    """Runs decisions on a modelled machine, piece by piece.

    After `run`: `visit_end` [visits] i64 is when each visit of the piece ended; `spent` [2, 6] i64 sums nanoseconds by
    phase (prefill, decode) and cause (`CAUSES`) over all pieces; `prefetches` [3] counts useful, late and wasted ones.
    """

    def __init__(self, costs: Costs, slots: int, experts: int) -> None:
        self._costs = CostArrays(*(getattr(costs, name) for name in CostArrays._fields))
        self._experts = experts
        self._state = MachineState(
            clock=np.zeros(3, np.int64),
            arrival=np.zeros(slots, np.int64),
            idle=np.zeros(slots, np.int64),
            queued=np.zeros(slots, np.uint8),
            unused=np.zeros(slots, np.uint8),
            queue=np.zeros((slots, 2), np.int64),
            queue_length=np.zeros(1, np.int64),
            layer_of=np.zeros(slots, np.int32),
            late=np.zeros((slots, 2), np.int64),
            link_busy=np.zeros(1, np.int64),
        )
        self.spent = np.zeros((2, len(CAUSES)), np.int64)
        self.prefetches = np.zeros(3, np.int64)

    @property
    def link_busy_ns(self) -> int:
        """Total time the link has been copying."""
        return int(self._state.link_busy[0])

    def run(self, demand: Demand, events: Events, context: np.ndarray) -> np.ndarray:
        """Time one piece. `context` [steps] i64: context tokens that the step's attention reads, over its tokens."""
        visit_end = np.empty(demand.visits, np.int64)
        tokens_of = np.zeros(demand.layers * demand.experts, np.int32)
        _run(
            self._state,
            self._costs,
            self._experts,
            (demand.layer, demand.start, demand.keys, demand.tokens, demand.step_tokens, demand.phase),
            (events.code, events.start),
            context,
            tokens_of,
            visit_end,
            self.spent,
            self.prefetches,
        )
        return visit_end


@njit(cache=True, error_model="numpy")
def _run(  # type: ignore[no-untyped-def]
    machine: Any, costs, experts, demand, events, context, tokens_of, visit_end, spent, prefetches
):
    layers, start, keys, tokens, step_tokens, phases = demand
    code, first = events
    clock = machine.clock
    step = -1
    for visit in range(len(layers)):
        layer = layers[visit]
        if layer == 0:
            step += 1
            clock[0] += costs.step_ns
            spent[phases[step], DENSE] += costs.step_ns
        phase = phases[step]
        for i in range(start[visit], start[visit + 1]):
            tokens_of[keys[i]] = tokens[i]

        memory = costs.dense_ns[layer] + context[step] * costs.context_ps // 1000
        dense = max(memory, step_tokens[step] * costs.dense_token_ps // 1000)
        overhead = costs.layer_overhead_ns + costs.readback_ns
        spent[phase, DENSE] += dense
        spent[phase, OVERHEAD] += overhead
        routed = clock[0] + dense + overhead
        _advance(machine, costs, routed)
        blocked = max(0, clock[2] - routed)
        e, end = first[visit], first[visit + 1]
        asking = costs.copy_overhead_ns * _copies(code[e:end])
        spent[phase, OVERHEAD] += asking
        now = routed + asking

        # Hits: compute what is there, put what is not in order of arrival.
        waiting = 0
        while e < end and code[e] >> KIND_SHIFT <= HIT_PREFETCHED:
            slot = code[e] >> SLOT_SHIFT & SLOT_MASK
            late = False
            if machine.queued[slot]:
                _forget(machine, slot)
                _copy(machine, costs, slot, layer, routed)
                late = True
            elif machine.arrival[slot] > routed:
                late = True
                blocked = 0  # the copy under way is one that this visit waits for
            if code[e] >> KIND_SHIFT == HIT_PREFETCHED:
                prefetches[LATE if late else USEFUL] += 1
                machine.unused[slot] = 0
            if late:
                place = waiting
                while place > 0 and machine.late[place - 1, 0] > machine.arrival[slot]:
                    machine.late[place, 0] = machine.late[place - 1, 0]
                    machine.late[place, 1] = machine.late[place - 1, 1]
                    place -= 1
                machine.late[place, 0] = machine.arrival[slot]
                machine.late[place, 1] = e
                waiting += 1
            else:
                now += _expert(machine, costs, layer, slot, tokens_of[code[e] & KEY_MASK], now, spent, phase)
            e += 1
        for w in range(waiting):
            slot = code[machine.late[w, 1]] >> SLOT_SHIFT & SLOT_MASK
            wait = max(0, machine.late[w, 0] - now)
            spent[phase, STALL_LATE] += wait
            now += wait
            expert = code[machine.late[w, 1]] & KEY_MASK
            now += _expert(machine, costs, layer, slot, tokens_of[expert], now, spent, phase)

        while e < end:
            kind, slot = code[e] >> KIND_SHIFT, code[e] >> SLOT_SHIFT & SLOT_MASK
            if kind in (LOAD, STREAM):
                _copy(machine, costs, slot, layer, routed)
                wait = max(0, machine.arrival[slot] - now)
                behind = min(wait, blocked)
                blocked -= behind
                spent[phase, STALL_LINK] += behind
                spent[phase, STALL_DEMAND] += wait - behind
                now += wait
                now += _expert(machine, costs, layer, slot, tokens_of[code[e] & KEY_MASK], now, spent, phase)
            elif kind == PREFETCH:
                length = machine.queue_length[0]
                machine.queue[length, 0] = slot
                machine.queue[length, 1] = routed
                machine.queue_length[0] = length + 1
                machine.queued[slot] = 1
                machine.unused[slot] = 1
                machine.layer_of[slot] = (code[e] & KEY_MASK) // experts
            elif kind in (DROP, EVICT) and machine.unused[slot]:
                prefetches[WASTED] += 1
                machine.unused[slot] = 0
                if machine.queued[slot]:
                    _forget(machine, slot)
            e += 1
        clock[0] = now
        visit_end[visit] = now


@njit(cache=True, error_model="numpy")
def _copies(code):  # type: ignore[no-untyped-def]
    """How many copies a visit with these events asks for."""
    count = 0
    for event in code:
        if LOAD <= event >> KIND_SHIFT <= PREFETCH:
            count += 1
    return count


@njit(cache=True, error_model="numpy")
def _expert(machine, costs, layer, slot, tokens, now, spent, phase):  # type: ignore[no-untyped-def]
    """Compute one expert from `now` on; returns how long it takes."""
    arithmetic = tokens * costs.expert_token_ps // 1000
    duration = max(costs.expert_ns[layer], arithmetic) + costs.expert_overhead_ns
    spent[phase, EXPERTS] += duration
    machine.idle[slot] = now + duration
    return duration


@njit(cache=True, error_model="numpy")
def _copy(machine, costs, slot, layer, earliest):  # type: ignore[no-untyped-def]
    """Copy an expert of `layer` into `slot` as soon as link and slot allow."""
    begin = max(max(machine.clock[1], earliest), machine.idle[slot])
    machine.clock[1] = begin + costs.copy_ns[layer]
    machine.link_busy[0] += costs.copy_ns[layer]
    machine.arrival[slot] = machine.clock[1]


@njit(cache=True, error_model="numpy")
def _advance(machine, costs, until):  # type: ignore[no-untyped-def]
    """Let the link start queued prefetches before `until`."""
    while machine.queue_length[0] > 0:
        slot = machine.queue[0, 0]
        begin = max(max(machine.clock[1], machine.queue[0, 1]), machine.idle[slot])
        if begin >= until:
            break
        _forget(machine, slot)
        _copy(machine, costs, slot, machine.layer_of[slot], begin)
        machine.clock[2] = machine.clock[1]


@njit(cache=True, error_model="numpy")
def _forget(machine, slot):  # type: ignore[no-untyped-def]
    """Take the slot's copy out of the queue."""
    length = machine.queue_length[0]
    i = 0
    while machine.queue[i, 0] != slot:
        i += 1
    while i + 1 < length:
        machine.queue[i, 0] = machine.queue[i + 1, 0]
        machine.queue[i, 1] = machine.queue[i + 1, 1]
        i += 1
    machine.queue_length[0] = length - 1
    machine.queued[slot] = 0
