"""`Link`: copies experts from host memory to device slots, one after the other.

The surface is small: ask for copies and get tickets, promote a prefetch that has become demanded, cancel one
that is given up, wait for a ticket. Demand copies go before queued prefetches; what has started is not
aborted.

`QueuedLink` does all but the copying. One daemon thread takes tickets from a queue and moves each, so
demand overtakes prefetch up to the moment a copy starts, without help from the computing thread. Where moving only
hands a copy over, the caller does that itself if nothing is before it. `ThreadLink` moves with memcpy, `CudaLink` with
a side stream; a test moves with a function of its own.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from time import monotonic, perf_counter_ns
from typing import Protocol

from torch import Tensor

from tracekit.errors import ModelError

TIMEOUT_S = 60.0


class Progress(IntEnum):
    """How far a copy is. It is QUEUED again between two of its pieces."""

    QUEUED = 0
    STARTED = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4


class HostSlab(Protocol):
    """Bytes on the host that are no tensor, such as a part of a file."""

    def numel(self) -> int:
        """How many bytes."""

    def read_into(self, target: Tensor) -> None:
        """Read them into a tensor u8 [bytes] in host memory."""


Source = Tensor | HostSlab
Copy = tuple[Source, Tensor, bool]
"""What to copy from, what to, and whether it is demanded: byte slabs of one length"""


class Ticket:
    """One copy: `source` and `target` are byte slabs of one length, `asked` when it was asked for (ns).

    `begun` bytes of it have been started, the last piece from `piece` on.
    """

    __slots__ = ("asked", "begun", "demand", "error", "given_up", "piece", "progress", "size", "source", "target")

    def __init__(self, source: Source, target: Tensor, *, demand: bool) -> None:
        self.source, self.target, self.demand = source, target, demand
        self.size = source.numel()
        self.piece = self.begun = 0
        self.given_up = False
        self.asked = perf_counter_ns()
        self.progress = Progress.QUEUED
        self.error: BaseException | None = None

    @property
    def arrived(self) -> bool:
        """Whether waiting would take no time."""
        return self.progress is Progress.DONE


class Link(Protocol):
    """Copies slabs from the host to the device, demand before prefetch, otherwise in the order asked.

    `in_flight` copies may have started and not landed at a time: those a later demand cannot overtake. Prefetches are
    copied in pieces of `piece_bytes`, each such a copy; whole, if that is 0.
    """

    in_flight: int
    piece_bytes: int

    def copies(self, asked: Sequence[Copy]) -> list[Ticket]:
        """Ask for copies. What the caller's stream has still to read from their targets is read first."""

    def promote(self, ticket: Ticket) -> None:
        """The copy is demanded now: what has not started of it goes at once, before all prefetches."""

    def cancel(self, ticket: Ticket) -> int:
        """Give the copy up; returns how many bytes of it are not copied. What has started runs to its end, before any
        later copy."""

    def wait(self, ticket: Ticket) -> None:
        """Return once the caller's next computation may read the target. ModelError if the copy failed."""

    def close(self) -> None:
        """End the link; what is queued is cancelled. A second call does nothing."""


Move = Callable[[Ticket], None]
"""Moves the bytes [piece, begun) of a ticket"""


class QueuedLink:
    """A `Link` whose copies a daemon thread makes, one at a time, by calling `move(ticket)`.

    Before the thread takes a ticket it calls `pace`, which returns when another copy may start. Waiting gives
    up with a ModelError when no copy at all has finished for `timeout_s`. The thread ends on `close`, when the link is
    garbage, or with the interpreter, in which no thread may be left within a copy. Each of these waits for the copy
    that runs, and then for `settle`, which returns when all copies have landed.

    With `room`, moving takes no time: then whoever asks for a copy from memory moves it too, if nothing is before it
    and it is demanded, or `room` says that a prefetch may start.
    """

    in_flight = 1
    piece_bytes = 0

    def __init__(
        self,
        move: Move,
        pace: Callable[[], None] = lambda: None,
        settle: Callable[[], object] = lambda: None,
        *,
        room: Callable[[], bool] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._queue = _Queue(move, room, self.piece_bytes)
        # The thread refers to the queue and not to the link: a forgotten link can be collected, and that ends the
        # thread.
        arguments = (self._queue, pace)
        self._thread = threading.Thread(target=_serve, args=arguments, name="expert-copies", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._queue, self._thread, settle, timeout_s)

    def copies(self, asked: Sequence[Copy]) -> list[Ticket]:
        tickets = self._tickets(asked)
        self._queue.put(tickets)
        return tickets

    def copy(self, source: Source, target: Tensor, *, demand: bool) -> Ticket:
        """One copy."""
        return self.copies([(source, target, demand)])[0]

    def promote(self, ticket: Ticket) -> None:
        self._queue.promote(ticket)

    def cancel(self, ticket: Ticket) -> int:
        return self._queue.cancel(ticket)

    def wait(self, ticket: Ticket) -> None:
        self._queue.wait(ticket, self.timeout_s)

    def close(self) -> None:
        self._end()

    def _tickets(self, asked: Sequence[Copy]) -> list[Ticket]:
        return [Ticket(source, target, demand=demand) for source, target, demand in asked]


class _Queue:
    """The tickets that wait for the copy thread, and who moves one. Every field is guarded by `changed`."""

    def __init__(self, move: Move, room: Callable[[], bool] | None, piece_bytes: int) -> None:
        self.changed = threading.Condition()
        self.move, self.room, self.piece_bytes = move, room, piece_bytes
        self.demand: deque[Ticket] = deque()
        self.prefetch: deque[Ticket] = deque()
        self.moving = False  # by the thread, who does not hold the lock meanwhile
        self.finished = 0
        self.closed = False

    def put(self, tickets: Sequence[Ticket]) -> None:
        with self.changed:
            if self.closed:
                raise ModelError("the offloaded model is closed: its experts can no longer be copied")
            for ticket in tickets:
                if not self._moved(ticket):
                    (self.demand if ticket.demand else self.prefetch).append(ticket)
            if self.demand or self.prefetch:
                self.changed.notify_all()

    def take(self) -> Ticket | None:
        """The next copy to start, waiting until there is one; None once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.demand or self.prefetch or self.closed)
            if self.closed:
                return None
            ticket = (self.demand or self.prefetch).popleft()
            self._begin(ticket)
            self.moving = True
            self.changed.notify_all()
            return ticket

    def finish(self, ticket: Ticket, error: BaseException | None) -> None:
        with self.changed:
            self.moving = False
            self._end(ticket, error)
            self.changed.notify_all()

    def idle(self) -> bool:
        """Whether what is moved now comes after all that was asked before: nothing is demanded, or half handed over."""
        return not (self.moving or self.demand)

    def _moved(self, ticket: Ticket) -> bool:
        """Move a copy, or its first piece, without the thread, if that is right."""
        if self.room is None or not isinstance(ticket.source, Tensor) or not self.idle():
            return False
        if not ticket.demand and (self.prefetch or not self.room()):
            return False
        self._begin(ticket)
        self._end(ticket, _failure(self.move, ticket))
        return True

    def _begin(self, ticket: Ticket) -> None:
        ticket.progress = Progress.STARTED
        ticket.piece = ticket.begun
        whole = ticket.demand or not self.piece_bytes or not isinstance(ticket.source, Tensor)
        ticket.begun = ticket.size if whole else min(ticket.size, ticket.begun + self.piece_bytes)

    def _end(self, ticket: Ticket, error: BaseException | None) -> None:
        ticket.error = error
        if error is not None:
            ticket.progress = Progress.FAILED
        elif ticket.begun == ticket.size:
            ticket.progress = Progress.DONE
        elif ticket.given_up:
            ticket.progress = Progress.CANCELLED
        else:
            ticket.progress = Progress.QUEUED
            if ticket.demand:
                self.demand.append(ticket)
            else:
                self.prefetch.appendleft(ticket)
        self.finished += 1

    def promote(self, ticket: Ticket) -> None:
        with self.changed:
            if ticket.demand or ticket.progress > Progress.STARTED:
                return
            ticket.demand = True
            if ticket.progress is Progress.QUEUED:
                self.prefetch.remove(ticket)
                if not self._moved(ticket):
                    self.demand.append(ticket)
                    self.changed.notify_all()

    def cancel(self, ticket: Ticket) -> int:
        with self.changed:
            if ticket.progress is Progress.QUEUED:
                (self.demand if ticket.demand else self.prefetch).remove(ticket)
                ticket.progress = Progress.CANCELLED
            elif ticket.progress is not Progress.STARTED:
                return 0
            ticket.given_up = True
            return ticket.size - ticket.begun

    def wait(self, ticket: Ticket, timeout_s: float) -> None:
        with self.changed:
            finished, deadline = -1, 0.0
            while ticket.progress < Progress.DONE:
                if self.finished > finished:
                    finished, deadline = self.finished, monotonic() + timeout_s
                if not self.changed.wait(deadline - monotonic()):
                    raise ModelError(f"the copy of an expert hangs: no copy has finished for {timeout_s:g} s")
        if ticket.progress is Progress.FAILED:
            raise ModelError(f"the copy of an expert failed: {ticket.error}") from ticket.error
        if ticket.progress is Progress.CANCELLED:
            raise ModelError("the copy of an expert was cancelled before it began")

    def close(self) -> None:
        with self.changed:
            self.closed = True
            for ticket in (*self.demand, *self.prefetch):
                ticket.progress = Progress.CANCELLED
            self.demand.clear()
            self.prefetch.clear()
            self.changed.notify_all()


def _serve(queue: _Queue, pace: Callable[[], None]) -> None:
    while True:
        error = _failure(pace)
        ticket = queue.take()
        if ticket is None:
            return
        queue.finish(ticket, error or _failure(queue.move, ticket))
        del ticket, error  # an idle thread keeps nothing alive


def _end(queue: _Queue, thread: threading.Thread, settle: Callable[[], object], timeout_s: float) -> None:
    queue.close()
    if thread is not threading.current_thread():  # which may be the one that collects garbage
        thread.join(timeout_s)
    settle()


def fill(target: Tensor, source: Source) -> None:
    """Copy or read `source` into `target`, both on the host."""
    if isinstance(source, Tensor):
        target.copy_(source)
    else:
        source.read_into(target)


def _failure(function: Callable[..., None], *arguments: Ticket) -> BaseException | None:
    try:
        function(*arguments)
    except BaseException as error:  # whatever it is, it belongs to the thread that waits
        return error
    return None
