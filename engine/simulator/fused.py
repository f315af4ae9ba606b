"""Experts in calls: one call computes all experts of a visit, and begins when the last of them is there.

Where calls are overlapped (grouped kernels), what is there at `routed` is computed in a call at once; the rest of a
visit of one token in one more, when the last of it is there; of several tokens, each expert as it arrives.

Experts are gathered instead of computed; a gathered one's slot is in use until FAR, that is until its call. A visit
that demands more than there are slots is computed in several calls: whatever is gathered is computed before a copy goes
to one of its slots.

`call_ns` is what a call takes whatever it computes. Where it is None each expert is computed by itself, and no code for
calls is compiled.
"""

from engine.simulator.costs import Costs
from engine.simulator.lanes import Visit, book, device_ns, expand_low
from engine.simulator.log import EXPERT, note
from engine.simulator.machine_state import FAR, Machine
from engine.simulator.options import compiled
from policies.events import KEY_MASK, KIND_SHIFT, SLOT_MASK, SLOT_SHIFT


@compiled(inline=True)
def gather(machine: Machine, event: int, gathered: int) -> int:
    """Put the demanded expert into the next call; returns how many are in it."""
    machine.gathered[gathered] = event
    machine.idle[event >> SLOT_SHIFT & SLOT_MASK] = FAR
    return gathered + 1


@compiled(inline=True)
def is_gathered(machine: Machine, event: int) -> bool:
    """Whether the event's slot holds an expert that waits for its call."""
    return bool(machine.idle[event >> SLOT_SHIFT & SLOT_MASK] == FAR)


@compiled()
def call(machine: Machine, costs: Costs, visit: Visit, gathered: int, now: int, call_ns: int) -> int:
    """Compute what is gathered from `now` on; returns when that ends. No slot of it is free before.

    The log divides a call among its experts, the call's own time with the first.
    """
    if gathered == 0:
        return now
    begin, end = now, now + call_ns
    for i in range(gathered):
        event = machine.gathered[i]
        end += device_ns(machine, costs, visit, event)
        slot = event >> SLOT_SHIFT & SLOT_MASK
        expand_low(costs.low, costs, visit, event)
        note(visit.log, EXPERT, begin, end, visit.number, event & KEY_MASK, slot, event >> KIND_SHIFT, 0)
        begin = end
    for i in range(gathered):
        machine.idle[machine.gathered[i] >> SLOT_SHIFT & SLOT_MASK] = end
    book(costs, visit, gathered, end - now)
    return end
