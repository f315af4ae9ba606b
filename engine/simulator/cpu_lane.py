"""The CPU lane: a visit's experts that the host computes, one after the other, and how they and copies slow each other.

Copies begin in the order in which they are placed, never before an earlier one, and so do the lane's experts. Whoever
places a copy therefore has the lane begin first what it begins until then (at the same instant, too): each then knows
who is at work when it begins.
"""

from typing import NamedTuple

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.log import CPU_EXPERT, Log, note
from engine.simulator.machine_state import CPU_BUSY, FAR, WIRE, Machine
from engine.simulator.options import compiled
from policies.events import KEY_MASK, KIND_SHIFT

# Numbers of `state`.
NEXT = 0  # the visit's expert that begins next
COUNT = 1  # how many the visit has
ASKED = 2  # none of them begins before
FREE = 3  # when the last one that has begun ends
NUMBER = 4  # of the visit
# Columns of `jobs`.
J_EVENT, J_NS, J_READY = range(3)


class Lane(NamedTuple):
    """What the host is to compute of a visit. Where it computes nothing there is none, and no code for it."""

    state: np.ndarray  # i64 [5]: see above
    jobs: np.ndarray  # i64 [experts, 3]: event, nanoseconds, and when the expert is in host memory


def make_lane(costs: Costs, experts: int) -> Lane | None:
    """A lane at rest, where the plan has the host compute misses."""
    return Lane(np.zeros(5, np.int64), np.zeros((experts, 3), np.int64)) if costs.cpu else None


@compiled(inline=True)
def hand_over(lane: Lane, number: int, asked: int) -> None:
    """A visit begins: it may hand over experts from `asked` on."""
    lane.state[NEXT], lane.state[COUNT], lane.state[ASKED], lane.state[NUMBER] = 0, 0, asked, number


@compiled(inline=True)
def add_job(lane: Lane, event: int, ns: int, ready: int) -> None:
    """One more expert of the visit, which takes so long by itself."""
    job = lane.jobs[lane.state[COUNT]]
    job[J_EVENT], job[J_NS], job[J_READY] = event, ns, ready
    lane.state[COUNT] += 1


@compiled(inline=True)
def contended(costs: Costs) -> bool:
    """Whether copies and the lane slow each other."""
    return costs.cpu_beside_percent > 0 or costs.copy_beside_percent > 0


@compiled(inline=True)
def next_begin(lane: Lane) -> int:
    """When the next expert begins; FAR if there is none."""
    if lane.state[NEXT] == lane.state[COUNT]:
        return FAR
    return int(max(max(lane.state[FREE], lane.state[ASKED]), lane.jobs[lane.state[NEXT], J_READY]))


@compiled()
def begin_jobs(lane: Lane, machine: Machine, costs: Costs, until: int, log: Log | None) -> None:
    """Let the lane begin what it begins until then; all copies that begin before are placed."""
    begin = next_begin(lane)
    while begin < FAR and begin <= until:
        job = lane.jobs[lane.state[NEXT]]
        ns = job[J_NS]
        if machine.link[WIRE] > begin:
            ns += ns * costs.cpu_beside_percent // 100
        machine.other[CPU_BUSY] += ns
        event = job[J_EVENT]
        note(log, CPU_EXPERT, begin, begin + ns, lane.state[NUMBER], event & KEY_MASK, -1, event >> KIND_SHIFT, 0)
        lane.state[FREE] = begin + ns
        lane.state[NEXT] += 1
        begin = next_begin(lane)
