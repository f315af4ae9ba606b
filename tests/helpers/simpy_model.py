"""The timeline as SimPy processes: a compute stream and a link, talking through events.

Written from the rules in engine.simulator.timeline's docstring, for comparison to the nanosecond. Everything that
happens at one instant happens in this order: copies and computations end; the gate's choice is known; the link
decides what to copy next.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from engine.simulator.costs import Costs
from tests.helpers.reference_cache import DROP, EVICT, HIT_PREFETCHED, LOAD, PREFETCH, STREAM

CHOICE_KNOWN, LINK_DECIDES = 2, 3  # simpy.events.NORMAL is 1
Process = Generator[simpy.Event, Any, None]


@dataclass
class Visit:
    """One visit: its work, and its decisions as (kind, key, slot)."""

    layer: int
    step_tokens: int
    context: int
    tokens_of: dict[int, int]
    events: list[tuple[int, int, int]]


@dataclass
class Copy:
    slot: int
    layer: int
    after: simpy.Event | None  # the last computation that uses the slot
    done: simpy.Event
    prefetch: bool


@dataclass
class Machine:
    """Run `visits` on `costs`; then `visit_end` holds when each ended, `copied` how long the link worked."""

    costs: Costs
    experts: int
    visits: list[Visit]
    visit_end: list[int] = field(default_factory=list)
    copied: int = 0

    def run(self) -> list[int]:
        self.env = simpy.Environment()
        self.demanded: list[Copy] = []
        self.ahead: list[Copy] = []
        self.brings: dict[int, Copy] = {}  # by slot: the copy that brought or will bring its expert
        self.last_use: dict[int, simpy.Event] = {}
        self.changed = self.env.event()
        self.env.process(self.link())
        self.env.run(self.env.process(self.compute()))
        return self.visit_end

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
            if queue and (queue[0].after is None or queue[0].after.processed):
                copy = queue.pop(0)
                self.copied += int(self.costs.copy_ns[copy.layer])
                yield self.env.timeout(int(self.costs.copy_ns[copy.layer]))
                copy.done.succeed()
            else:
                yield self.changed

    def compute(self) -> Process:
        costs = self.costs
        for visit in self.visits:
            if visit.layer == 0:
                yield self.env.timeout(costs.step_ns)
            memory = int(costs.dense_ns[visit.layer]) + visit.context * costs.context_ps // 1000
            dense = max(memory, visit.step_tokens * costs.dense_token_ps // 1000)
            yield self.env.timeout(dense + costs.layer_overhead_ns + costs.readback_ns)
            yield self.at_this_instant(CHOICE_KNOWN)

            ready: list[tuple[int, simpy.Event]] = []
            coming: list[tuple[Copy, int, simpy.Event]] = []
            under_way: list[tuple[Copy, int, simpy.Event]] = []
            for kind, key, slot in visit.events:
                if kind in (DROP, EVICT):
                    self.ahead = [copy for copy in self.ahead if copy.slot != slot]
                elif kind == PREFETCH:
                    copy = self.new_copy(slot, key // self.experts, prefetch=True)
                    self.ahead.append(copy)
                else:
                    if kind in (LOAD, STREAM):
                        self.demanded.append(self.new_copy(slot, visit.layer, prefetch=False))
                    copy = self.brings[slot]
                    used = self.env.event()
                    self.last_use[slot] = used
                    if copy in self.ahead:
                        self.ahead.remove(copy)
                        self.demanded.append(copy)
                    if copy.done.processed:
                        assert kind <= HIT_PREFETCHED
                        ready.append((key, used))
                    elif copy in self.demanded:
                        coming.append((copy, key, used))
                    else:
                        under_way.append((copy, key, used))
            self.notify()
            yield self.env.timeout(
                costs.copy_overhead_ns * sum(k in (LOAD, STREAM, PREFETCH) for k, _, _ in visit.events)
            )
            for key, used in ready:
                yield from self.work(visit, key, used)
            for copy, key, used in under_way + coming:
                if not copy.done.processed:
                    yield copy.done
                yield from self.work(visit, key, used)
            self.visit_end.append(int(self.env.now))

    def new_copy(self, slot: int, layer: int, *, prefetch: bool) -> Copy:
        copy = Copy(slot, layer, self.last_use.get(slot), self.env.event(), prefetch)
        self.brings[slot] = copy
        return copy

    def work(self, visit: Visit, key: int, used: simpy.Event) -> Process:
        costs = self.costs
        arithmetic = visit.tokens_of[key] * costs.expert_token_ps // 1000
        duration = max(int(costs.expert_ns[visit.layer]), arithmetic)
        yield self.env.timeout(duration + costs.expert_overhead_ns)
        used.succeed()
        self.notify()
