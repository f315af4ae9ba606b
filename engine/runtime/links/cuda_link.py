"""`CudaLink`: host to device copies from pinned memory on a CUDA stream beside the computing one."""

from collections import deque

import torch
from torch import Tensor
from torch.cuda import Event, Stream

from engine.runtime.links.queued_link import TIMEOUT_S, HostSlab, QueuedLink, Source, Ticket

IN_FLIGHT = 2  # the copy that runs and the one behind it, so that the copy engine never waits for the thread


class CudaTicket(Ticket):
    """A copy between two events: the caller's stream is past what used the target; the copy has landed."""

    __slots__ = ("free", "landed")

    def __init__(self, source: Source, target: Tensor, *, demand: bool) -> None:
        super().__init__(source, target, demand=demand)
        self.free = _event()
        self.free.record(torch.cuda.current_stream(target.device))
        self.landed = _event(blocking=True)  # waiting for it sleeps instead of spinning

    @property
    def arrived(self) -> bool:
        return super().arrived and bool(self.landed.query())  # type: ignore[no-untyped-call]


class CudaLink(QueuedLink):
    """Copies on a side stream, ordered against the computing stream by events alone, never by a device-wide wait.

    The thread hands at most two copies to the stream: a demand copy waits for those two and overtakes all other
    prefetches. A ticket is done once it is on the stream, and `wait` makes the caller's stream wait, not the caller.
    """

    in_flight = IN_FLIGHT

    def __init__(self, device: torch.device, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stream = Stream(device)  # type: ignore[no-untyped-call]
        copies = _StreamCopies(self._stream)
        super().__init__(copies.move, copies.pace, self._stream.synchronize, timeout_s=timeout_s)

    def wait(self, ticket: Ticket) -> None:
        super().wait(ticket)
        assert isinstance(ticket, CudaTicket)
        torch.cuda.current_stream(ticket.target.device).wait_event(ticket.landed)

    def _ticket(self, source: Source, target: Tensor, *, demand: bool) -> Ticket:
        return CudaTicket(source, target, demand=demand)


class _StreamCopies:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.running: deque[Event] = deque()
        self.buffers: list[Tensor] = []  # pinned, for slabs that are read from files; used one after the other
        self.last = 0  # the buffer that was copied from last

    def move(self, ticket: Ticket) -> None:
        assert isinstance(ticket, CudaTicket)
        source = ticket.source if isinstance(ticket.source, Tensor) else self.read(ticket.source)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(ticket.free)
            ticket.target.copy_(source, non_blocking=True)
            ticket.landed.record(self.stream)
        # Memory that is dropped before the copy has landed is not handed out until it has.
        ticket.target.record_stream(self.stream)
        self.running.append(ticket.landed)
        self.last = (
            self.last + (source is not ticket.source)
        ) % IN_FLIGHT  # not before: a read that fails leaves its buffer unused

    def read(self, slab: HostSlab) -> Tensor:
        """Read a slab into the buffer that has rested longest: `pace` has waited for the copy from it."""
        if not self.buffers or self.buffers[0].numel() < slab.numel():
            # Torch keeps the smaller ones until the copies from them have landed.
            size = slab.numel()
            self.buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(IN_FLIGHT)]
        target = self.buffers[(self.last + 1) % IN_FLIGHT][: slab.numel()]
        slab.read_into(target)
        return target

    def pace(self) -> None:
        while len(self.running) >= IN_FLIGHT:
            self.running.popleft().synchronize()


def _event(*, blocking: bool = False) -> Event:
    return Event(blocking=blocking)  # type: ignore[no-untyped-call]
