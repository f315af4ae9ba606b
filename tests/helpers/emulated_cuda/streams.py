"""Streams and events that carry out what is queued on them as early, or as late, as their order allows.

Nothing runs when it is asked for but when the schedule lets it, so that a forgotten wait shows in the bits as well as
in the clocks. EARLY: copies at once, computing when somebody waits for it. LATE: computing at once, copies when
somebody waits for them.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.helpers.emulated_cuda.clocks import Actor, Clock, Ledger, Memory

EARLY, LATE = "early", "late"
Touched = list[tuple[Memory, int, int, bool]]
"""(memory, low, high, whether it is written)"""


class Recorded:
    """One record of an event: what the stream had been given when it was recorded, and whether it is done."""

    def __init__(self, stream: "Stream", clock: Clock) -> None:
        self.stream, self.clock, self.done = stream, clock, False


class Stream(Actor):
    """A queue of work. What the host had done when it queued a piece of work happens before it."""

    def __init__(self, streams: "Streams", number: int, name: str) -> None:
        super().__init__(number, name)
        self.streams = streams
        streams.all.append(self)
        self.queue: deque[Callable[[], None] | Recorded | tuple[Recorded]] = deque()

    def wait_event(self, event: "Event") -> None:
        """Work queued from now on comes after what the event recorded; nothing, if it has recorded nothing."""
        with self.streams.lock:
            self.hear(self.streams.host.tell())
            if event.recorded is not None:
                self.hear(event.recorded.clock)
                self.queue.append((event.recorded,))

    def synchronize(self) -> None:
        """The host waits for everything on the stream."""
        with self.streams.lock:
            self.streams.waits.append((self.streams.host, self.name))
            self.streams.drain(self)
            self.streams.host.hear(self.clock)


class Event:
    """Marks a place in a stream."""

    def __init__(self, streams: "Streams") -> None:
        self.streams = streams
        self.recorded: Recorded | None = None

    def record(self, stream: Stream | None = None) -> None:
        streams = self.streams
        stream = stream or streams.current
        with streams.lock:
            stream.hear(streams.host.tell())
            self.recorded = Recorded(stream, stream.tell())
            stream.queue.append(self.recorded)
            streams.settle(stream)

    def query(self) -> bool:
        """Whether what was recorded is done: nothing recorded is."""
        with self.streams.lock:
            if self.recorded is None:
                return True
            if self.recorded.done:
                self.streams.host.hear(self.recorded.clock)
            return self.recorded.done

    def synchronize(self) -> None:
        with self.streams.lock:
            if self.recorded is not None:
                self.streams.waits.append((self.streams.host, f"an event on {self.recorded.stream.name}"))
                self.streams.drain(self.recorded.stream, self.recorded)
                self.streams.host.hear(self.recorded.clock)


class Streams:
    """All streams of the device, the schedule by which they run, and the host's threads.

    `waits` lists every time that a host thread waited for the device, `launches` what the computing stream was given.
    """

    def __init__(self, schedule: str) -> None:
        self.schedule = schedule
        self.ledger = Ledger()
        self.lock = threading.RLock()
        self.waits: list[tuple[Actor, str]] = []
        self.launches: list[str] = []
        self.inside = threading.local()  # its `running` is set while queued work is carried out
        self.error = ""  # of a call that failed; the next launch reports it
        self._here = threading.local()
        self.all: list[Stream] = []
        self.default = Stream(self, *self._named("the computing stream"))
        self._sides = 0

    def named_side(self) -> tuple[int, str]:
        """Number and name of another stream."""
        self._sides += 1
        return self._named(f"side stream {self._sides}")

    def synchronize(self) -> None:
        """The host waits for the whole device."""
        with self.lock:
            self.waits.append((self.host, "the device"))
            for stream in self.all:
                self.drain(stream)
                self.host.hear(stream.clock)

    @property
    def host(self) -> Actor:
        """The thread that asks."""
        if not hasattr(self._here, "actor"):
            self._here.actor = Actor(*self._named(f"thread {threading.current_thread().name}"))
        actor: Actor = self._here.actor
        return actor

    @property
    def current(self) -> Stream:
        return getattr(self._here, "stream", self.default)

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """What this thread launches goes to `stream`."""
        before = self.current
        self._here.stream = stream
        try:
            yield
        finally:
            self._here.stream = before

    def launch(self, what: str, touched: Touched, work: Callable[[], None] | None) -> None:
        """Queue work on the current stream."""
        if self.error:
            error, self.error = self.error, ""
            raise RuntimeError(f"CUDA error: {error}")
        with self.lock:
            stream = self.current
            if stream is self.default:
                self.launches.append(what)
            stream.hear(self.host.tell())
            self.ledger.access(stream, what, touched)
            if work is not None:
                stream.queue.append(work)
                self.settle(stream)

    def touch(self, what: str, touched: Touched) -> None:
        """The host itself reads or writes."""
        with self.lock:
            self.ledger.access(self.host, what, touched)

    def wait(self, what: str) -> None:
        """The host waits for the current stream."""
        with self.lock:
            self.waits.append((self.host, what))
            self.drain(self.current)
            self.host.hear(self.current.clock)

    def settle(self, stream: Stream) -> None:
        """Carry out what the schedule wants done at once."""
        if (stream is self.default) == (self.schedule == LATE):
            self.drain(stream)

    def drain(self, stream: Stream, until: Recorded | None = None) -> None:
        """Carry out what is queued, or as much of it as precedes a record, and whatever that has to wait for."""
        while stream.queue and not (until is not None and until.done):
            step = stream.queue.popleft()
            if isinstance(step, Recorded):
                step.done = True
            elif isinstance(step, tuple):
                self.drain(step[0].stream, step[0])
            else:
                self.inside.running = True
                try:
                    step()
                finally:
                    self.inside.running = False

    def _named(self, name: str) -> tuple[int, str]:
        actor = self.ledger.actor(name)
        return actor.number, name
