"""`CudaLink`: host to device copies from pinned memory on a CUDA stream beside the computing one."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.cuda import Event, Stream

from engine.runtime.links.queued_link import TIMEOUT_S, Copy, HostSlab, Progress, QueuedLink, Source, Ticket

IN_FLIGHT = 2  # the copy that runs and the one behind it, so that the copy engine never waits for the thread
PIECE_BYTES = 4 << 20  # of prefetches: 0.16 ms of a link of 25 GB/s, where an expert of Mixtral in 4 bits takes 4 ms


class Mark:
    """A place in a stream, once recorded. Its event is used again when nobody refers to the mark any more."""

    __slots__ = ("_spare", "event")

    def __init__(self, spare: list[Event]) -> None:
        # Waiting for it sleeps instead of spinning.
        self.event = spare.pop() if spare else Event(blocking=True)  # type: ignore[no-untyped-call]
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self.event)

    def record(self, stream: Stream) -> None:
        self.event.record(stream)

    @property
    def passed(self) -> bool:
        """Whether everything before it is done."""
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaTicket(Ticket):
    """A copy between two marks: the caller's stream is past what used the target; the last piece has landed."""

    __slots__ = ("free", "landed")

    def __init__(self, source: Source, target: Tensor, free: Mark, *, demand: bool) -> None:
        super().__init__(source, target, demand=demand)
        self.free = free
        self.landed: Mark | None = None

    @property
    def arrived(self) -> bool:
        return super().arrived and self.landed is not None and self.landed.passed

    @property
    def ahead(self) -> int:
        waiting = self.size - self.begun if self.demand and self.progress <= Progress.STARTED else 0
        if self.landed is None:
            return waiting + (self.begun if self.progress is Progress.STARTED else 0)
        return waiting + (0 if self.landed.passed else self.begun - max(0, self.piece - PIECE_BYTES))


class CudaLink(QueuedLink):
    """Copies on a side stream, ordered against the computing stream by events alone, never by a device-wide wait.

    A demanded copy is handed to the stream at once; the thread hands over prefetches, two pieces at a time: so demand
    waits for two pieces at most. A ticket is done once it is on the stream, and `wait` makes the caller's stream wait,
    not the caller.
    """

    in_flight = IN_FLIGHT
    piece_bytes = PIECE_BYTES

    def __init__(self, device: torch.device, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stream = Stream(device)  # type: ignore[no-untyped-call]
        self._spare: list[Event] = []
        copies = _StreamCopies(self._stream, self._spare)
        super().__init__(copies.move, copies.pace, self._stream.synchronize, room=copies.room, timeout_s=timeout_s)

    def wait(self, ticket: Ticket) -> None:
        super().wait(ticket)
        assert isinstance(ticket, CudaTicket) and ticket.landed is not None
        torch.cuda.current_stream(ticket.target.device).wait_event(ticket.landed.event)

    def _tickets(self, asked: Sequence[Copy]) -> list[Ticket]:
        if not asked:
            return []
        free = Mark(self._spare)
        free.record(torch.cuda.current_stream(asked[0][1].device))
        return [CudaTicket(source, target, free, demand=demand) for source, target, demand in asked]


class _StreamCopies:
    """What the thread and the caller hand to the stream, one of them at a time."""

    def __init__(self, stream: Stream, spare: list[Event]) -> None:
        self.stream, self.spare = stream, spare
        self.running: deque[Mark] = deque(maxlen=IN_FLIGHT)  # of the last copies
        self.waited: Mark | None = None  # the last that the stream waits for
        self.buffers: list[Tensor] = []  # pinned, for slabs that are read from files; used one after the other
        self.last = 0  # the buffer that was copied from last

    def move(self, ticket: Ticket) -> None:
        assert isinstance(ticket, CudaTicket)
        source = ticket.source if isinstance(ticket.source, Tensor) else self.read(ticket.source)
        target = ticket.target
        if ticket.begun - ticket.piece < ticket.size:
            source, target = source[ticket.piece : ticket.begun], target[ticket.piece : ticket.begun]
        with torch.cuda.stream(self.stream):
            if self.waited is not ticket.free:  # several copies are asked for at a time
                self.stream.wait_event(ticket.free.event)
                self.waited = ticket.free
            target.copy_(source, non_blocking=True)
        landed = Mark(self.spare)
        landed.record(self.stream)
        # Memory that is dropped before the copy has landed is not handed out until it has.
        target.record_stream(self.stream)
        self.running.append(landed)
        ticket.landed = landed
        if not isinstance(ticket.source, Tensor):
            self.last = (self.last + 1) % IN_FLIGHT  # not before: a read that fails leaves its buffer unused

    def read(self, slab: HostSlab) -> Tensor:
        """Read a slab into the buffer that has rested longest: `pace` has waited for the copy from it."""
        if not self.buffers or self.buffers[0].numel() < slab.numel():
            # Torch keeps the smaller ones until the copies from them have landed.
            size = slab.numel()
            self.buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(IN_FLIGHT)]
        target = self.buffers[(self.last + 1) % IN_FLIGHT][: slab.numel()]
        slab.read_into(target)
        return target

    def room(self) -> bool:
        """Whether at most one copy has not landed."""
        return len(self.running) < IN_FLIGHT or self.running[0].passed

    def pace(self) -> None:
        if len(self.running) == IN_FLIGHT:
            self.running[0].event.synchronize()
