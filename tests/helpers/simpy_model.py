"""The timeline as SimPy processes: compute stream, CPU, link, disk, talking through events.

Written from the rules in engine.simulator.timeline's docstring, for comparison event by event, to the nanosecond.
Everything that happens at one instant happens in this order: copies, reads and computations end; reads begin; the
gate's choice is known, and reads it asks for begin; the CPU begins an expert; the link decides what to copy next.
"""

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from engine.simulator.costs import Costs
from engine.simulator.lanes import STALL_CPU, STALL_DEMAND, STALL_LATE
from engine.simulator.log import (
    ASKING,
    COPY,
    COPY_ADMITTED,
    COPY_AHEAD,
    COPY_DEMAND,
    COPY_LATE,
    CPU_EXPERT,
    DENSE_PART,
    DISK_READ,
    EXPERT,
    OVERHEAD_PART,
    WAIT,
)
from tests.helpers.reference_cache import (
    ADMIT,
    BYPASS,
    DROP,
    EVICT,
    HIT_PINNED,
    HIT_PREFETCHED,
    HOST,
    LOAD,
    PREFETCH,
)

READS_BEGIN, CHOICE_KNOWN, CPU_BEGINS, LINK_DECIDES = 2, 3, 4, 5  # simpy.events.NORMAL is 1
Process = Generator[simpy.Event, Any, None]
Row = tuple[int, ...]


@dataclass
class Visit:
    """One visit: its work, and its decisions as (kind, key, slot)."""

    layer: int
    step_tokens: int
    context: int
    tokens_of: dict[int, int]
    events: list[tuple[int, int, int]]
    number: int = 0


class Past(simpy.Event):
    """What happened before the clock began."""

    @property
    def processed(self) -> bool:
        return True


@dataclass
class Copy:
    """One expert's way to its slot."""

    key: int
    slot: int
    layer: int
    asked: int  # by visit
    prefetch: bool  # asked for ahead of demand, or while the host computes it
    admitted: bool
    used: simpy.Event | None  # the last computation that uses the slot
    before: "Copy | None"  # the copy to the slot before this one
    read: simpy.Event | None  # from disk
    done: simpy.Event
    chunk: int = 0  # the next one to begin
    demanded: int = -1  # by visit
    moving: simpy.Event | None = None  # the last chunk that has begun
    arrived: int = -1

    @property
    def clear(self) -> bool:
        """Whether it may begin."""
        moving = None if self.before is None else self.before.moving
        return all(event is None or event.processed for event in (self.used, moving, self.read))


@dataclass
class Machine:
    """Run `visits` on `costs`.

    Afterwards `visit_end` holds when each ended, `rows` what happened, as in engine.simulator.log; one WAIT for each
    time the device waits, for a missing expert always booked to demand.
    """

    costs: Costs
    experts: int
    visits: list[Visit]
    visit_end: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def run(self) -> list[int]:
        self.env = simpy.Environment()
        self.demanded: list[Copy] = []
        self.ahead: list[Copy] = []
        self.brings: dict[int, Copy] = {}  # by slot: the copy that brought or will bring its expert
        self.last_use: dict[int, simpy.Event] = {}
        self.changed = self.env.event()
        self.free_since = [0] * self.costs.copy_engines
        self.engines = set(range(self.costs.copy_engines))
        self.wire = simpy.Resource(self.env)
        self.to_read: list[tuple[int, int, int, int, simpy.Event]] = []
        self.reading: list[int] = []  # by lane that is busy: the visit that asked for what it reads
        self.disk_changed = self.env.event()
        self.host: OrderedDict[int, int] = OrderedDict()
        self.read_of: dict[int, simpy.Event] = {}
        self.last_choice = self.copying = 0
        self.computing = False  # the CPU
        for number, visit in enumerate(self.visits):
            visit.number = number
        self.env.process(self.link())
        self.env.process(self.read())
        self.env.process(self.compute())
        self.env.run()
        return self.visit_end

    @property
    def now(self) -> int:
        return int(self.env.now)

    def note(
        self, what: int, begin: int, visit: int, key: int = -1, slot: int = -1, kind: int = 0, engine: int = 0
    ) -> None:
        self.rows.append((what, begin, self.now, visit, key, slot, kind, engine))

    def at_this_instant(self, priority: int) -> simpy.Event:
        event = self.env.event()
        event._ok, event._value = True, None
        self.env.schedule(event, priority)  # type: ignore[arg-type]
        return event

    def notify(self) -> None:
        self.changed.succeed()
        self.changed = self.env.event()

    def link(self) -> Process:
        while True:
            yield self.at_this_instant(LINK_DECIDES)
            queue = self.demanded or self.ahead
            if not (queue and self.engines and queue[0].clear):
                yield self.changed
                continue
            copy = queue[0]
            engine = min(self.engines, key=lambda number: (self.free_since[number], number))
            self.engines.remove(engine)
            chunk, last = copy.chunk, copy.chunk + 1 == self.costs.chunks[copy.layer]
            if queue is self.demanded:
                wire_ns, last = int(self.costs.rest_ns[copy.layer, chunk]), True
            else:
                wire_ns = int(self.costs.chunk_ns[copy.layer, chunk])
            slower = 0
            if self.reading and (queue is self.ahead or min(self.reading) <= copy.demanded):
                slower = wire_ns * self.costs.slowdown_percent // 100
            if self.computing:
                slower += wire_ns * self.costs.copy_beside_percent // 100
            wire_ns += slower
            self.copying += 1
            copy.chunk += 1
            copy.moving = copy.done if last else self.env.event()
            if last:
                queue.pop(0)
            kind = COPY_LATE if copy.prefetch else COPY_DEMAND
            if queue is self.ahead:
                kind = COPY_ADMITTED if copy.admitted else COPY_AHEAD
            self.env.process(self.transfer(copy, engine, wire_ns, copy.moving, kind))

    def transfer(self, copy: Copy, engine: int, wire_ns: int, moved: simpy.Event, kind: int) -> Process:
        begin = self.now
        yield self.env.timeout(self.costs.setup_ns)
        with self.wire.request() as wire:
            yield wire
            yield self.env.timeout(wire_ns)
        self.copying -= 1
        self.engines.add(engine)
        self.free_since[engine] = self.now
        copy.arrived = self.now
        self.note(COPY, begin, copy.asked, copy.key, copy.slot, kind, engine)
        moved.succeed()
        self.notify()

    def read(self) -> Process:
        """The disk: whatever waits begins while a lane is free."""
        while True:
            yield self.at_this_instant(READS_BEGIN)
            if not self.to_read or len(self.reading) == self.costs.disk_lanes:
                yield self.disk_changed
                continue
            visit, key, slot, kind, done = self.to_read.pop(0)
            self.reading.append(visit)
            layer, others = key // self.experts, len(self.reading) - 1
            alone = self.costs.disk_lanes == 1
            read_ns = int(self.costs.read_ns[layer] if alone else self.costs.lanes_ns[layer, others])
            self.env.process(self.one_read(visit, key, slot, kind, done, read_ns))

    def one_read(self, visit: int, key: int, slot: int, kind: int, done: simpy.Event, read_ns: int) -> Process:
        begin = self.now
        yield self.env.timeout(read_ns)
        self.note(DISK_READ, begin, visit, key, slot, kind)
        self.reading.remove(visit)
        done.succeed()
        self.notify()
        self.disk_changed.succeed()
        self.disk_changed = self.env.event()

    def ask_disk(self, visit: Visit, kind: int, key: int, slot: int) -> None:
        """The host cache, most recent last; what is pushed out keeps the copies that were asked for."""
        if self.costs.host_bytes < 0:
            return
        if key not in self.host:
            self.read_of[key] = self.env.event()
            self.to_read.append((visit.number, key, slot, kind, self.read_of[key]))
            self.disk_changed.succeed()
            self.disk_changed = self.env.event()
        self.host[key] = self.costs.expert_bytes[key // self.experts]
        self.host.move_to_end(key)
        while sum(self.host.values()) > self.costs.host_bytes:
            self.host.popitem(last=False)

    def compute(self) -> Process:
        costs = self.costs
        for visit in self.visits:
            begin = self.now
            memory = int(costs.dense_ns[visit.layer]) + visit.context * costs.context_ps // 1000
            dense = max(memory, visit.step_tokens * costs.dense_token_ps // 1000)
            yield self.env.timeout(dense + (costs.step_ns if visit.layer == 0 else 0))
            self.note(DENSE_PART, begin, visit.number)
            begin = self.now
            predicting = int(costs.predict_ns[visit.layer]) + visit.step_tokens * costs.predict_token_ps // 1000
            looked_up = sum(kind <= ADMIT for kind, _, _ in visit.events)
            inserted = sum(kind in (LOAD, ADMIT, PREFETCH) for kind, _, _ in visit.events)
            managing = looked_up * costs.lookup_ns + inserted * costs.insert_ns
            yield self.env.timeout(costs.layer_overhead_ns + costs.readback_ns + predicting + managing)
            self.note(OVERHEAD_PART, begin, visit.number)
            self.last_choice = self.now
            yield self.at_this_instant(CHOICE_KNOWN)

            ready: list[tuple[Copy, int, int, simpy.Event]] = []
            late: list[tuple[Copy, int, int, simpy.Event]] = []
            missing: list[tuple[Copy, int, int, simpy.Event]] = []
            for_cpu: list[tuple[int, int, int]] = []
            call: list[tuple[Copy, int, int, simpy.Event]] = []
            for kind, key, slot in visit.events:
                if kind in (HOST, LOAD, BYPASS, ADMIT, PREFETCH):
                    self.ask_disk(visit, kind, key, slot)
            for kind, key, slot in visit.events:
                if kind in (DROP, EVICT):
                    for copy in [copy for copy in self.ahead if copy.slot == slot]:
                        self.ahead.remove(copy)
                        if copy.moving is None and copy.before is not None:
                            self.brings[slot] = copy.before
                elif kind == PREFETCH:
                    self.ahead.append(self.new_copy(visit, key, slot, prefetch=True))
                elif kind in (HOST, ADMIT):
                    for_cpu.append((kind, key, slot))
                    if kind == ADMIT:
                        self.ahead.append(self.new_copy(visit, key, slot, prefetch=True, admitted=True))
                else:
                    if kind in (LOAD, BYPASS):
                        self.demanded.append(self.new_copy(visit, key, slot, prefetch=False))
                    if kind <= HIT_PINNED and slot not in self.brings:
                        self.brings[slot] = self.there_before(key, slot)
                    copy = self.brings[slot]
                    used = self.env.event()
                    self.last_use[slot] = used
                    if copy in self.ahead:
                        self.ahead.remove(copy)
                        copy.demanded = visit.number
                        self.demanded.append(copy)
                    entry = (copy, kind, key, used)
                    (missing if kind > HIT_PREFETCHED else ready if copy.done.processed else late).append(entry)
            self.notify()
            asked = sum(kind in (LOAD, BYPASS, ADMIT, PREFETCH) for kind, _, _ in visit.events)
            begin = self.now
            yield self.env.timeout(costs.copy_overhead_ns * asked)
            if self.now > begin:
                self.note(ASKING, begin, visit.number, kind=asked)
            cpu = self.env.process(self.compute_on_cpu(visit, for_cpu))
            overlapped, several = costs.overlapped > 0, visit.step_tokens > 1
            early = visit.tokens_of if several else [key for _, _, key, _ in ready]
            alone = set(early if overlapped else ())
            call_of = self.calls(visit, alone)
            for entry in ready:
                yield from self.work_or_gather(visit, entry, call)
            if overlapped:
                yield from self.call(visit, call)
            while late:
                begin = self.now
                if not any(copy.done.processed for copy, *_ in late):
                    yield self.env.any_of([copy.done for copy, *_ in late])
                # The wire serves one copy at a time: the first to have begun arrives first.
                first = min((entry for entry in late if entry[0].done.processed), key=lambda entry: entry[0].arrived)
                late.remove(first)
                if self.now > begin:
                    cause = STALL_LATE if first[0].prefetch and not first[0].admitted else STALL_DEMAND
                    self.note(WAIT, begin, visit.number, first[2], first[0].slot, cause)
                yield from self.work_or_gather(visit, first, call)
                if overlapped and several:
                    yield from self.call(visit, call)
            for copy, kind, key, used in missing:
                if call and call_of[key] > call_of[call[-1][2]]:
                    yield from self.call(visit, call)
                begin = self.now
                if not copy.done.processed:
                    yield copy.done
                if self.now > begin:
                    self.note(WAIT, begin, visit.number, key, copy.slot, STALL_DEMAND)
                yield from self.work_or_gather(visit, (copy, kind, key, used), call)
                if overlapped and several:
                    yield from self.call(visit, call)
            yield from self.call(visit, call)
            begin = self.now
            if for_cpu:
                yield cpu
            if self.now > begin:
                self.note(WAIT, begin, visit.number, kind=STALL_CPU)
            self.visit_end.append(self.now)

    def there_before(self, key: int, slot: int) -> Copy:
        """How an expert that was pinned from the start came to its slot."""
        layer, done = key // self.experts, Past(self.env)
        return Copy(key, slot, layer, -1, prefetch=False, admitted=False, used=None, before=None, read=None, done=done)

    def new_copy(self, visit: Visit, key: int, slot: int, *, prefetch: bool, admitted: bool = False) -> Copy:
        copy = Copy(
            key=key,
            slot=slot,
            layer=key // self.experts,
            asked=visit.number,
            prefetch=prefetch,
            admitted=admitted,
            used=self.last_use.get(slot),
            before=self.brings.get(slot),
            read=self.read_of.get(key),
            done=self.env.event(),
            demanded=-1 if prefetch else visit.number,
        )
        self.brings[slot] = copy
        return copy

    def calls(self, visit: Visit, alone: set[int]) -> dict[int, int]:
        """Which call computes each demanded expert: the next one whenever a copy's slot has one of the call.

        `alone`: those computed before the others are waited for, which hold no slot.
        """
        number, held, call_of = 0, set[int](), {}
        for kind, key, slot in visit.events:
            if kind == HOST or kind > ADMIT:
                continue
            if slot in held:
                number, held = number + 1, set()
            if kind != ADMIT and key not in alone:
                held.add(slot)
            call_of[key] = number
        return call_of

    def work_or_gather(
        self, visit: Visit, entry: tuple[Copy, int, int, simpy.Event], call: list[tuple[Copy, int, int, simpy.Event]]
    ) -> Process:
        if self.costs.call_ns < 0:
            yield from self.work(visit, *entry)
        else:
            call.append(entry)

    def call(self, visit: Visit, call: list[tuple[Copy, int, int, simpy.Event]]) -> Process:
        """One fused call; its slots are free when all of it is done."""
        begin = self.now
        if call:
            yield self.env.timeout(self.costs.call_ns)
        for copy, kind, key, _ in call:
            yield self.env.timeout(self.expert_ns(visit, key))
            self.note(EXPERT, begin, visit.number, key, copy.slot, kind)
            begin = self.now
        for *_, used in call:
            used.succeed()
        call.clear()
        self.notify()

    def expert_ns(self, visit: Visit, key: int) -> int:
        costs = self.costs
        arithmetic = visit.tokens_of[key] * costs.expert_token_ps // 1000
        layer = key // self.experts  # of a copy: behind its visit's, if it is a low one
        expanding = int(costs.dequant_ns[layer])
        return expanding + max(int(costs.expert_ns[layer]), arithmetic) + costs.expert_overhead_ns

    def work(self, visit: Visit, copy: Copy, kind: int, key: int, used: simpy.Event) -> Process:
        begin = self.now
        yield self.env.timeout(self.expert_ns(visit, key))
        self.note(EXPERT, begin, visit.number, key, copy.slot, kind)
        used.succeed()
        self.notify()

    def compute_on_cpu(self, visit: Visit, experts: list[tuple[int, int, int]]) -> Process:
        costs = self.costs
        for kind, key, _ in experts:
            read = self.read_of.get(key)
            if read is not None and not read.processed:
                yield read
            yield self.at_this_instant(CPU_BEGINS)
            begin = self.now
            arithmetic = visit.tokens_of[key] * costs.cpu_token_ps // 1000
            cpu_ns = max(int(costs.cpu_expert_ns[key // self.experts]), arithmetic) + costs.cpu_overhead_ns
            if self.copying:
                cpu_ns += cpu_ns * costs.cpu_beside_percent // 100
            self.computing = True
            yield self.env.timeout(cpu_ns)
            self.computing = False
            self.note(CPU_EXPERT, begin, visit.number, key, -1, kind)
