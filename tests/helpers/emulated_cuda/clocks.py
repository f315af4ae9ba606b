"""Who did what to which memory, and in which order: vector clocks over host threads and streams (Lamport, Fidge).

An access happens before another if the second's actor has heard of it: through a launch, an event, a lock, the start or
the end of a thread. Two accesses to the same bytes, one of them a write, of which neither has heard of the other are a
race, whatever order they happened to run in.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

Clock = dict[int, int]
"""actor -> the number of its last access that is known here"""


class Actor:
    """A host thread or a stream."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.clock: Clock = {number: 0}

    def hear(self, clock: Clock) -> None:
        """Everything that `clock` knows of happens before whatever this actor does from now on."""
        for actor, at in clock.items():
            if self.clock.get(actor, 0) < at:
                self.clock[actor] = at

    def tell(self) -> Clock:
        """What has happened so far, as this actor knows it."""
        return dict(self.clock)


@dataclass(frozen=True, slots=True)
class Access:
    """One access: the operation, the actor and the number that its clock then had."""

    what: str
    actor: Actor
    at: int

    def known_to(self, clock: Clock) -> bool:
        return clock.get(self.actor.number, 0) >= self.at

    def __str__(self) -> str:
        return f"{self.what} on {self.actor.name}"


@dataclass(slots=True)
class _Cell:
    """The last write of a range of bytes, and the last read since by each actor."""

    write: Access | None = None
    reads: dict[int, Access] = field(default_factory=dict)


class Memory:
    """A piece of memory that several actors use; `name` and `each` say what it is called, piece by piece."""

    def __init__(self, name: str, each: int = 0) -> None:
        self.name, self.each = name, each
        self._cells: dict[tuple[int, int], _Cell] = {}

    def describe(self, low: int, high: int) -> str:
        """What a range of its bytes is called, such as `slot 3`."""
        if self.each:
            first, last = low // self.each, (high - 1) // self.each
            return f"{self.name} {first}" if first == last else f"{self.name}s {first} to {last}"
        return f"{self.name}, bytes {low} to {high}"

    def accesses(self) -> Iterator[tuple[int, int, Access]]:
        """Every access that is remembered, and the bytes it was to."""
        for (low, high), cell in self._cells.items():
            for access in (cell.write, *cell.reads.values()):
                if access is not None:
                    yield low, high, access

    def note(self, low: int, high: int, access: Access, *, write: bool, clock: Clock) -> Iterator["Race"]:
        """Remember an access to bytes [low, high) by an actor that knows `clock`; yields the races that it is in."""
        for (start, end), cell in list(self._cells.items()):
            if start >= high or low >= end:
                continue
            for earlier in (cell.write, *(cell.reads.values() if write else ())):
                if earlier is not None and not earlier.known_to(clock):
                    yield Race(self, max(low, start), min(high, end), earlier, access)
            if write and low <= start and end <= high:
                del self._cells[start, end]
        cell = self._cells.setdefault((low, high), _Cell())
        if write:
            cell.write = access
            cell.reads.clear()
        else:
            cell.reads[access.actor.number] = access


@dataclass(frozen=True, slots=True)
class Race:
    """Two operations on the same bytes that nothing orders."""

    memory: Memory
    low: int
    high: int
    first: Access
    second: Access

    def __str__(self) -> str:
        return f"race on {self.memory.describe(self.low, self.high)}: {self.first} and {self.second} have no order"


class Ledger:
    """All actors and the races between them."""

    def __init__(self) -> None:
        self.races: list[Race] = []
        self._actors = 0

    def actor(self, name: str) -> Actor:
        self._actors += 1
        return Actor(self._actors, name)

    def access(self, actor: Actor, what: str, touched: list[tuple[Memory, int, int, bool]]) -> None:
        """One operation of `actor`, which touches (memory, low, high, whether it writes)."""
        at = actor.clock[actor.number] = actor.clock[actor.number] + 1
        access = Access(what, actor, at)
        for memory, low, high, write in touched:
            self.races.extend(memory.note(low, high, access, write=write, clock=actor.clock))

    def end(self, memory: Memory, what: str, actor: Actor, clock: Clock, spared: Set[int] = frozenset()) -> None:
        """Memory ends, in one of whose uses by an actor not `spared` what `clock` does not know is a race."""
        for low, high, earlier in memory.accesses():
            if earlier.actor.number not in spared and not earlier.known_to(clock):
                self.races.append(Race(memory, low, high, earlier, Access(what, actor, actor.clock[actor.number])))
