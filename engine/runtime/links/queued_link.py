"""`Link`: copies experts from host memory to device slots, one after the other.

The surface is small: ask for a copy and get a ticket, promote a prefetch that has become demanded, cancel one
that is given up, wait for a ticket. Demand copies go before queued prefetches; a copy that has started is not
aborted.

`QueuedLink` does all but the copying. One daemon thread takes tickets from a queue and moves each, so
demand overtakes prefetch up to the moment a copy starts, without help from the computing thread. `ThreadLink`
moves with memcpy, `CudaLink` with a side stream; a test moves with a function of its own.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from time import monotonic, perf_counter_ns
from typing import Protocol

from torch import Tensor

from tracekit.errors import ModelError

TIMEOUT_S = 60.0


class Progress(IntEnum):
    """How far a copy is. Beyond QUEUED it can be neither promoted nor cancelled."""

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


class Ticket:
    """One copy: `source` and `target` are byte slabs of one length, `asked` when it was asked for (ns)."""

    __slots__ = ("asked", "demand", "error", "progress", "source", "target")

    def __init__(self, source: Source, target: Tensor, *, demand: bool) -> None:
        self.source, self.target, self.demand = source, target, demand
        self.asked = perf_counter_ns()
        self.progress = Progress.QUEUED
        self.error: BaseException | None = None

    @property
    def arrived(self) -> bool:
        """Whether waiting would take no time."""
        return self.progress is Progress.DONE


class Link(Protocol):
    """Copies slabs from the host to the device, demand before prefetch, otherwise in the order asked.

    `in_flight` copies may have started and not landed at a time: those a later demand cannot overtake.
    """

    in_flight: int

    def copy(self, source: Source, target: Tensor, *, demand: bool) -> Ticket:
        """Ask for a copy. What the caller's stream has still to read from `target` is read first."""

    def promote(self, ticket: Ticket) -> None:
        """The copy is demanded now: it goes before all prefetches that have not started."""

    def cancel(self, ticket: Ticket) -> bool:
        """Give the copy up. False when it has started: then it runs to its end, before any later copy."""

    def wait(self, ticket: Ticket) -> None:
        """Return once the caller's next computation may read the target. ModelError if the copy failed."""

    def close(self) -> None:
        """End the link; what is queued is cancelled. A second call does nothing."""


class QueuedLink:
    """A `Link` whose copies a daemon thread makes, one at a time, by calling `move(ticket)`.

    Before the thread takes a ticket it calls `pace`, which returns when another copy may start. Waiting gives
    up with a ModelError when no copy at all has finished for `timeout_s`. The thread ends on `close`, when the link is
    garbage, or with the interpreter, in which no thread may be left within a copy. Each of these waits for the copy
    that runs, and then for `settle`, which returns when all copies have landed.
    """

    in_flight = 1

    def __init__(
        self,
        move: Callable[[Ticket], None],
        pace: Callable[[], None] = lambda: None,
        settle: Callable[[], object] = lambda: None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._queue = _Queue()
        # The thread refers to the queue and not to the link: a forgotten link can be collected, and that ends the
        # thread.
        arguments = (self._queue, move, pace)
        self._thread = threading.Thread(target=_serve, args=arguments, name="expert-copies", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._queue, self._thread, settle, timeout_s)

    def copy(self, source: Source, target: Tensor, *, demand: bool) -> Ticket:
        ticket = self._ticket(source, target, demand=demand)
        self._queue.put(ticket)
        return ticket

    def promote(self, ticket: Ticket) -> None:
        self._queue.promote(ticket)

    def cancel(self, ticket: Ticket) -> bool:
        return self._queue.cancel(ticket)

    def wait(self, ticket: Ticket) -> None:
        self._queue.wait(ticket, self.timeout_s)

    def close(self) -> None:
        self._end()

    def _ticket(self, source: Source, target: Tensor, *, demand: bool) -> Ticket:
        return Ticket(source, target, demand=demand)


class _Queue:
    """The tickets that wait for the copy thread. Every field is guarded by `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.demand: deque[Ticket] = deque()
        self.prefetch: deque[Ticket] = deque()
        self.finished = 0
        self.closed = False

    def put(self, ticket: Ticket) -> None:
        with self.changed:
            if self.closed:
                raise ModelError("the offloaded model is closed: its experts can no longer be copied")
            (self.demand if ticket.demand else self.prefetch).append(ticket)
            self.changed.notify_all()

    def take(self) -> Ticket | None:
        """The next copy to start, waiting until there is one; None once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.demand or self.prefetch or self.closed)
            if self.closed:
                return None
            ticket = (self.demand or self.prefetch).popleft()
            ticket.progress = Progress.STARTED
            return ticket

    def finish(self, ticket: Ticket, error: BaseException | None) -> None:
        with self.changed:
            ticket.error = error
            ticket.progress = Progress.DONE if error is None else Progress.FAILED
            self.finished += 1
            self.changed.notify_all()

    def promote(self, ticket: Ticket) -> None:
        with self.changed:
            if ticket.progress is Progress.QUEUED and not ticket.demand:
                self.prefetch.remove(ticket)
                ticket.demand = True
                self.demand.append(ticket)

    def cancel(self, ticket: Ticket) -> bool:
        with self.changed:
            if ticket.progress is not Progress.QUEUED:
                return False
            (self.demand if ticket.demand else self.prefetch).remove(ticket)
            ticket.progress = Progress.CANCELLED
            return True

    def wait(self, ticket: Ticket, timeout_s: float) -> None:
        with self.changed:
            finished, deadline = self.finished, monotonic() + timeout_s
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


def _serve(queue: _Queue, move: Callable[[Ticket], None], pace: Callable[[], None]) -> None:
    while True:
        error = _failure(pace)
        ticket = queue.take()
        if ticket is None:
            return
        queue.finish(ticket, error or _failure(move, ticket))
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
