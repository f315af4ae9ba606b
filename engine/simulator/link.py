"""The link: its engines, the wire, and the queue of prefetches."""

from engine.simulator.costs import Costs
from engine.simulator.log import COPY, COPY_AHEAD, COPY_LATE, Log, note
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
def place(machine: Machine, costs: Costs, earliest: int, wire_ns: int) -> tuple[int, int, int]:
    """The next copy's engine, begin and end, if it is asked for now and may not begin before `earliest`."""
    link = machine.link
    engine = ENGINE
    begin = max(link[WIRE], earliest)  # one engine is free when the wire is
    if costs.copy_engines > 1:
        engine = ENGINE + 1 if link[ENGINE + 1] < link[ENGINE] else ENGINE
        begin = max(max(link[engine], link[BEGUN]), earliest)
    if costs.slowdown_percent > 0 and begin < machine.other[DISK]:
        wire_ns += wire_ns * costs.slowdown_percent // 100
    return engine, begin, max(begin + costs.setup_ns, link[WIRE]) + wire_ns


@compiled(inline=True)
def start(machine: Machine, engine: int, begin: int, end: int) -> None:
    """The copy that was placed begins."""
    link = machine.link
    link[LINK_BUSY] += end - max(begin, link[WIRE])
    link[engine] = end
    link[BEGUN] = begin
    link[WIRE] = end


@compiled()
def enqueue(machine: Machine, costs: Costs, visit: int, layers: int, key: int, slot: int, routed: int) -> None:
    """A prefetch joins the queue."""
    layer = key // (len(machine.tokens) // layers)
    earliest = max(max(routed, machine.idle[slot]), machine.arrival[slot])
    if costs.host_bytes >= 0:
        earliest = max(earliest, machine.ready[key])
    entry = machine.queue[machine.other[WAITING]]
    machine.other[WAITING] += 1
    entry[Q_SLOT], entry[Q_KEY], entry[Q_LAYER], entry[Q_VISIT] = slot, key, layer, visit
    entry[Q_EARLIEST], entry[Q_CHUNK], entry[Q_ARRIVAL] = earliest, 0, machine.arrival[slot]
    machine.arrival[slot] = FAR
    machine.ahead[slot] = 1
    machine.unused[slot] = 1


@compiled()
def advance(machine: Machine, costs: Costs, until: int, log: Log | None) -> None:
    """Let the link begin queued prefetches before `until`."""
    while machine.other[WAITING] > 0:
        entry = machine.queue[0]
        layer, chunk = entry[Q_LAYER], entry[Q_CHUNK]
        engine, begin, end = place(machine, costs, entry[Q_EARLIEST], costs.chunk_ns[layer, chunk])
        if begin >= until:
            break
        start(machine, engine, begin, end)
        machine.link[AHEAD] = end
        note(log, COPY, begin, end, entry[Q_VISIT], entry[Q_KEY], entry[Q_SLOT], COPY_AHEAD, engine)
        entry[Q_CHUNK] += 1
        entry[Q_ARRIVAL] = end
        if chunk + 1 == costs.chunks[layer]:
            forget(machine, entry[Q_SLOT])


@compiled()
def promote(machine: Machine, costs: Costs, slot: int, routed: int, log: Log | None) -> bool:
    """The expert of a queued prefetch is demanded: what is left of it is copied now. True if a chunk is under way."""
    i = 0
    while machine.queue[i, Q_SLOT] != slot:
        i += 1
    entry = machine.queue[i]
    begun = entry[Q_CHUNK] > 0 and entry[Q_ARRIVAL] > routed
    rest_ns = costs.rest_ns[entry[Q_LAYER], entry[Q_CHUNK]]
    engine, begin, end = place(machine, costs, max(entry[Q_EARLIEST], routed), rest_ns)
    start(machine, engine, begin, end)
    note(log, COPY, begin, end, entry[Q_VISIT], entry[Q_KEY], slot, COPY_LATE, engine)
    forget(machine, slot)
    machine.arrival[slot] = end
    return bool(begun)


@compiled()
def give_up(machine: Machine, slot: int, routed: int) -> None:
    """A queued prefetch is not wanted any more: what waited behind it may begin from now on, and could not before."""
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
