"""`ThreadLink`: the link of a machine without an accelerator: a thread that really copies, slowed on request."""

import threading
import time
from dataclasses import dataclass

from engine.runtime.links.queued_link import TIMEOUT_S, QueuedLink, Ticket, fill
from tracekit.errors import HardwareError

LONGEST_WAIT_S = 3600.0
"""At a time: the system's clocks refuse centuries."""


@dataclass(frozen=True, slots=True)
class EmulatedLink:
    """The speed of a link that this machine lacks: a copy takes `latency_ns + bytes / bytes_per_s` or longer."""

    bytes_per_s: float
    latency_ns: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < float("inf") or self.latency_ns < 0:
            raise HardwareError(
                f"a link of {self.bytes_per_s:g} bytes/s and {self.latency_ns} ns latency cannot be emulated: "
                "give a positive bandwidth and no negative latency"
            )

    def copy_ns(self, size: int) -> int:
        """How long the link is taken by one copy of `size` bytes."""
        return self.latency_ns + round(size * 1e9 / self.bytes_per_s)


class ThreadLink(QueuedLink):
    """Copies with memcpy on a thread of its own; with `emulate`, no faster than that link would."""

    def __init__(self, emulate: EmulatedLink | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._copies = _Memcpy(emulate)
        super().__init__(self._copies, timeout_s=timeout_s)

    def close(self) -> None:
        self._copies.closed.set()
        super().close()


class _Memcpy:
    def __init__(self, emulate: EmulatedLink | None) -> None:
        self.emulate = emulate
        self.closed = threading.Event()
        self.free_at = 0  # when the emulated link has finished its last copy

    def __call__(self, ticket: Ticket) -> None:
        fill(ticket.target, ticket.source)
        if self.emulate is None:
            return
        # The emulated link starts a copy when asked or when free, whichever is later, not when this thread
        # woke up: so what one sleep overshoots does not delay the copies behind it.
        due = max(ticket.asked, self.free_at) + self.emulate.copy_ns(ticket.source.numel())
        self.free_at = max(due, time.perf_counter_ns())
        while (left := due - time.perf_counter_ns()) > 0:
            # Whoever closes the link, at Ctrl-C say, does not wait for a copy that takes days.
            if self.closed.wait(min(left / 1e9, LONGEST_WAIT_S)):
                return
