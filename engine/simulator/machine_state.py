"""What the simulator's kernel works on: a machine's state and the costs of work on it, as named tuples of arrays."""

from typing import NamedTuple

import numpy as np

from engine.simulator.costs import Costs

FAR = 1 << 62
"""Later than anything: the arrival of an expert whose copy waits in the queue, the second engine where there is one."""

# Numbers of `link`.
ENGINE = 0  # and 1: when each copy engine is free
BEGUN = 2  # when the last copy began
WIRE = 3  # when the wire is free
AHEAD = 4  # when the last prefetch that has begun ends
LINK_BUSY = 5  # total time with a copy under way

# Numbers of `other`.
NOW = 0  # the end of the last visit
WAITING = 1  # length of the queue
DISK = 2  # when the disk is free
DISK_BUSY = 3  # total
CPU_BUSY = 4  # total
HOST_USED = 5  # bytes in the host cache

# Columns of `host`: the neighbour used more recently, and the one less. Of its last row: both ends.
PREV, NEXT = 0, 1
TAIL, HEAD = 0, 1

# Columns of `queue`.
Q_SLOT, Q_KEY, Q_LAYER, Q_VISIT, Q_EARLIEST, Q_CHUNK, Q_ARRIVAL = range(7)


class Machine(NamedTuple):
    """A machine in time; all times are nanoseconds."""

    link: np.ndarray  # i64 [6]: see above
    other: np.ndarray  # i64 [6]: see above
    arrival: np.ndarray  # i64 [slots]: when the slot's expert is there; FAR while its copy is queued
    idle: np.ndarray  # i64 [slots]: when the last computation that uses the slot ends
    unused: np.ndarray  # u8 [slots]: the slot's expert was prefetched and not demanded since
    ahead: np.ndarray  # u8 [slots]: the slot's last copy is a prefetch's
    queue: np.ndarray  # i64 [slots, 7]: waiting prefetches, oldest first; Q_EARLIEST: no copy before this instant,
    # Q_CHUNK: the next chunk, Q_ARRIVAL: when the last copy to the slot that has begun ends
    late: np.ndarray  # i64 [slots, 2]: scratch: arrival, event
    gathered: np.ndarray  # i64 [slots]: scratch: events whose experts wait for their call
    tokens: np.ndarray  # i32 [keys]: scratch: tokens of a demanded expert
    expert_bytes: np.ndarray  # i64 [layers]: what an expert takes of the host cache
    ready: np.ndarray  # i64 [keys]: when the expert was or will be read from disk
    host: np.ndarray  # i64 [keys + 1, 2]: the host cache's list, PREV and NEXT, -1 if not in it; then its TAIL and HEAD


class Host(NamedTuple):
    """What the host does beside reading one expert at a time; a machine without it has none, and no code for it."""

    lookup_ns: int
    insert_ns: int
    lanes: np.ndarray  # i64 [lanes]: when each of the disk's lanes is free


def make_host(costs: Costs) -> Host | None:
    """A host at rest, where it does any such thing."""
    if costs.lookup_ns == 0 and costs.insert_ns == 0 and costs.disk_lanes == 1:
        return None
    return Host(costs.lookup_ns, costs.insert_ns, np.zeros(costs.disk_lanes, np.int64))


def make_state(costs: Costs, slots: int, experts: int) -> Machine:
    """A machine at rest with `slots` slots."""
    keys = len(costs.expert_bytes) * experts
    host = np.full((keys + 1, 2), -1, np.int64)
    host[keys] = keys
    state = Machine(
        link=np.zeros(6, np.int64),
        other=np.zeros(6, np.int64),
        arrival=np.zeros(slots, np.int64),
        idle=np.zeros(slots, np.int64),
        unused=np.zeros(slots, np.uint8),
        ahead=np.zeros(slots, np.uint8),
        queue=np.zeros((slots, 7), np.int64),
        late=np.zeros((slots, 2), np.int64),
        gathered=np.zeros(slots, np.int64),
        tokens=np.ones(keys, np.int32),
        expert_bytes=np.array(costs.expert_bytes, np.int64),
        ready=np.zeros(keys, np.int64),
        host=host,
    )
    if costs.copy_engines == 1:
        state.link[ENGINE + 1] = FAR
    return state
