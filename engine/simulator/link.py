"""The link: its engines, the wire, and the queue of copies that nobody waits for yet."""

from engine.simulator.costs import Costs
from engine.simulator.cpu_lane import FREE, Lane, begin_jobs, contended
from engine.simulator.log import COPY, COPY_ADMITTED, COPY_AHEAD, COPY_LATE, Log, note
from engine.simulator.machine_state import (
    AHEAD,
    BEGUN,
    DISK,
    ENGINE,
    FAR,
    LINK_BUSY,
    Q_ARRIVAL,
    Q_CHUNK,
    Q_EARLIEST,
    Q_KEY,
    Q_LAYER,
    Q_SLOT,
    Q_VISIT,
    WAITING,
    WIRE,
    Machine,
)
from engine.simulator.options import compiled


@compiled(inline=True)
def place(
    machine: Machine, costs: Costs, lane: Lane | None, earliest: int, wire_ns: int, log: Log | None
) -> tuple[int, int, int]:
    """The next copy's engine, begin and end, if it is asked for now and may not begin before `earliest`."""
    link = machine.link
    engine = ENGINE
    begin = max(link[WIRE], earliest)  # one engine is free when the wire is
    if costs.copy_engines > 1:
        engine = ENGINE + 1 if link[ENGINE + 1] < link[ENGINE] else ENGINE
        begin = max(max(link[engine], link[BEGUN]), earliest)
    slower = 0
    if costs.slowdown_percent > 0 and begin < machine.other[DISK]:
        slower = wire_ns * costs.slowdown_percent // 100
    if lane is not None and contended(costs):
        begin_jobs(lane, machine, costs, begin, log)
        if lane.state[FREE] > begin:
            slower += wire_ns * costs.copy_beside_percent // 100
    return engine, begin, max(begin + costs.setup_ns, link[WIRE]) + wire_ns + slower


@compiled(inline=True)
def start(machine: Machine, engine: int, begin: int, end: int) -> None:
    """The copy that was placed begins."""
    link = machine.link
    link[LINK_BUSY] += end - max(begin, link[WIRE])
    link[engine] = end
    link[BEGUN] = begin
    link[WIRE] = end


@compiled()
def enqueue(
    machine: Machine, costs: Costs, visit: int, layers: int, key: int, slot: int, routed: int, ahead: int
) -> None:
    """A prefetch joins the queue; or, if it is not `ahead`, an expert that is admitted while the host computes it."""
    layer = key // (len(machine.tokens) // layers)
    earliest = max(max(routed, machine.idle[slot]), machine.arrival[slot])
    if costs.host_bytes >= 0:
        earliest = max(earliest, machine.ready[key])
    entry = machine.queue[machine.other[WAITING]]
    machine.other[WAITING] += 1
    entry[Q_SLOT], entry[Q_KEY], entry[Q_LAYER], entry[Q_VISIT] = slot, key, layer, visit
    entry[Q_EARLIEST], entry[Q_CHUNK], entry[Q_ARRIVAL] = earliest, 0, machine.arrival[slot]
    machine.arrival[slot] = FAR
    machine.ahead[slot] = machine.unused[slot] = ahead


@compiled()
def advance(machine: Machine, costs: Costs, lane: Lane | None, until: int, log: Log | None) -> None:
    """Let the link begin queued copies before `until`."""
    while machine.other[WAITING] > 0:
        entry = machine.queue[0]
        layer, chunk = entry[Q_LAYER], entry[Q_CHUNK]
        engine, begin, end = place(machine, costs, lane, entry[Q_EARLIEST], costs.chunk_ns[layer, chunk], log)
        if begin >= until:
            break
        start(machine, engine, begin, end)
        machine.link[AHEAD] = end
        kind = COPY_AHEAD if machine.ahead[entry[Q_SLOT]] else COPY_ADMITTED
        note(log, COPY, begin, end, entry[Q_VISIT], entry[Q_KEY], entry[Q_SLOT], kind, engine)
        entry[Q_CHUNK] += 1
        entry[Q_ARRIVAL] = end
        if chunk + 1 == costs.chunks[layer]:
            forget(machine, entry[Q_SLOT])


@compiled()
def promote(machine: Machine, costs: Costs, lane: Lane | None, slot: int, routed: int, log: Log | None) -> bool:
    """The expert of a queued copy is demanded: what is left of it is copied now. True if a chunk is under way."""
    i = 0
    while machine.queue[i, Q_SLOT] != slot:
        i += 1
    entry = machine.queue[i]
    begun = entry[Q_CHUNK] > 0 and entry[Q_ARRIVAL] > routed
    rest_ns = costs.rest_ns[entry[Q_LAYER], entry[Q_CHUNK]]
    engine, begin, end = place(machine, costs, lane, max(entry[Q_EARLIEST], routed), rest_ns, log)
    start(machine, engine, begin, end)
    note(log, COPY, begin, end, entry[Q_VISIT], entry[Q_KEY], slot, COPY_LATE, engine)
    forget(machine, slot)
    machine.arrival[slot] = end
    return bool(begun)


@compiled()
def give_up(machine: Machine, slot: int, routed: int) -> None:
    """A queued copy is not wanted any more: what waited behind it may begin from now on, and could not before."""
    forget(machine, slot)
    for i in range(machine.other[WAITING]):
        machine.queue[i, Q_EARLIEST] = max(machine.queue[i, Q_EARLIEST], routed)


@compiled()
def forget(machine: Machine, slot: int) -> None:
    """Take the slot's copy out of the queue; what has begun of it stays."""
    i = 0
    while machine.queue[i, Q_SLOT] != slot:
        i += 1
    machine.arrival[slot] = machine.queue[i, Q_ARRIVAL]
    length = machine.other[WAITING] - 1
    machine.other[WAITING] = length
    for j in range(i, length):
        for column in range(machine.queue.shape[1]):
            machine.queue[j, column] = machine.queue[j + 1, column]
