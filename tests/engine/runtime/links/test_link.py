"""The queue of copies: what overtakes what, what can be called off, and that nothing ever hangs."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from engine.runtime.links.queued_link import Progress, QueuedLink, Ticket  # noqa: E402  # needs torch
from engine.runtime.links.thread_link import EmulatedLink, ThreadLink  # noqa: E402
from tracekit.errors import HardwareError, ModelError  # noqa: E402


class Gated:
    """Moves a ticket each time `let` is called, and notes the order; a negative first byte is an I/O error."""

    def __init__(self) -> None:
        self.moved: list[int] = []
        self.allowed = threading.Semaphore(0)
        self.link = QueuedLink(self.move, timeout_s=1.0)

    def move(self, ticket: Ticket) -> None:
        self.allowed.acquire()
        value = int(ticket.source[0])
        if value < 0:
            raise OSError("bad sector")
        self.moved.append(value)
        ticket.target.copy_(ticket.source)

    def copy(self, value: int, *, demand: bool) -> Ticket:
        source = torch.tensor([value], dtype=torch.int8)
        return self.link.copy(source, torch.zeros(1, dtype=torch.int8), demand=demand)

    def let(self, copies: int = 1) -> None:
        for _ in range(copies):
            self.allowed.release()


@pytest.fixture
def gated() -> Iterator[Gated]:
    gated = Gated()
    yield gated
    gated.let(100)
    gated.link.close()


def started(ticket: Ticket) -> Ticket:
    """Wait until the copy thread has taken the ticket."""
    deadline = time.monotonic() + 5
    while ticket.progress is Progress.QUEUED:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return ticket


def test_demand_goes_before_queued_prefetches_but_not_before_a_started_one(gated: Gated) -> None:
    begun = started(gated.copy(1, demand=False))
    queued = [gated.copy(2, demand=False), gated.copy(3, demand=False)]
    wanted = [gated.copy(4, demand=True), gated.copy(5, demand=True)]
    gated.let(5)
    for ticket in (begun, *queued, *wanted):
        gated.link.wait(ticket)
    assert gated.moved == [1, 4, 5, 2, 3]


def test_a_prefetch_that_becomes_demanded_is_promoted_behind_earlier_demand(gated: Gated) -> None:
    started(gated.copy(1, demand=True))
    gated.copy(2, demand=False)
    late = gated.copy(3, demand=False)
    gated.copy(4, demand=True)
    gated.link.promote(late)
    last = gated.copy(5, demand=True)
    gated.let(4)
    gated.link.wait(last)
    assert gated.moved == [1, 4, 3, 5]


def test_only_what_has_not_started_can_be_cancelled(gated: Gated) -> None:
    begun = started(gated.copy(1, demand=False))
    queued, kept = gated.copy(2, demand=False), gated.copy(3, demand=False)
    assert gated.link.cancel(queued)
    assert not gated.link.cancel(queued)
    assert not gated.link.cancel(begun)
    gated.let(3)
    gated.link.wait(kept)
    assert gated.moved == [1, 3]
    assert not gated.link.cancel(kept)
    with pytest.raises(ModelError, match="cancelled"):
        gated.link.wait(queued)


class InPieces(QueuedLink):
    """Prefetches in pieces of two bytes; `moved` is told the first byte and the part of each."""

    piece_bytes = 2

    def __init__(self) -> None:
        self.moved: list[tuple[int, int, int]] = []
        self.allowed = threading.Semaphore(0)
        super().__init__(self.move, timeout_s=5.0)

    def move(self, ticket: Ticket) -> None:
        self.allowed.acquire()
        low, high = ticket.piece, ticket.begun
        self.moved.append((int(ticket.source[0]), low, high))  # type: ignore[index]
        ticket.target[low:high] = ticket.source[low:high]  # type: ignore[index]

    def asked(self, value: int, *, demand: bool) -> Ticket:
        return self.copy(torch.full((6,), value, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8), demand=demand)

    def let(self, copies: int) -> None:
        for _ in range(copies):
            self.allowed.release()

    def after(self, copies: int) -> None:
        with self._queue.changed:
            assert self._queue.changed.wait_for(lambda: self._queue.finished == copies and self._queue.moving, 5)


def test_demand_goes_between_the_pieces_of_a_prefetch() -> None:
    link = InPieces()
    ahead = started(link.asked(1, demand=False))
    link.asked(2, demand=True)
    link.let(2)
    link.after(2)
    assert link.moved == [(1, 0, 2), (2, 0, 6)]
    link.promote(ahead)  # while its second piece is moved: the rest then goes as one
    link.let(2)
    link.wait(ahead)
    assert link.moved[2:] == [(1, 2, 4), (1, 4, 6)]
    assert ahead.target.tolist() == [1] * 6
    link.close()


def test_the_rest_of_a_prefetch_that_is_given_up_is_not_copied() -> None:
    link = InPieces()
    first, second = started(link.asked(1, demand=False)), link.asked(2, demand=False)
    assert link.cancel(first) == 4
    link.let(1)
    link.after(1)
    assert first.progress is Progress.CANCELLED
    assert link.cancel(second) == 4
    link.let(2)
    link.close()
    assert link.moved == [(1, 0, 2), (2, 0, 2)]


def test_with_room_the_caller_moves_what_it_asks_for() -> None:
    by: list[int] = []
    room = [True]
    link = QueuedLink(lambda ticket: by.append(threading.get_ident()), room=lambda: room[0])
    source, target = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    assert [ticket.arrived for ticket in link.copies([(source, target, True), (source, target, False)])] == [True] * 2
    room[0] = False
    demanded, ahead = link.copies([(source, target, True), (source, target, False)])
    assert demanded.arrived
    link.wait(ahead)
    assert [one == threading.get_ident() for one in by] == [True, True, True, False]
    link.close()


def test_a_failed_copy_raises_where_it_is_waited_for_and_harms_no_other(gated: Gated) -> None:
    bad, good = gated.copy(-1, demand=True), gated.copy(7, demand=True)
    gated.let(2)
    gated.link.wait(good)
    assert int(good.target[0]) == 7
    with pytest.raises(ModelError, match="the copy of an expert failed: bad sector"):
        gated.link.wait(bad)


def test_a_copy_that_hangs_is_given_up(gated: Gated) -> None:
    gated.link.timeout_s = 0.05
    with pytest.raises(ModelError, match=r"hangs: no copy has finished for 0\.05 s"):
        gated.link.wait(gated.copy(1, demand=True))


def test_waiting_is_patient_while_copies_finish(gated: Gated) -> None:
    """The time-out is for a link that stands still, not for a long queue."""
    gated.link.timeout_s = 0.2
    tickets = [gated.copy(value, demand=True) for value in range(8)]
    threading.Thread(target=lambda: [(time.sleep(0.05), gated.let()) for _ in tickets], daemon=True).start()
    gated.link.wait(tickets[-1])
    assert gated.moved == list(range(8))


def test_closing_cancels_and_refuses(gated: Gated) -> None:
    gated.let(1)
    gated.link.close()
    with pytest.raises(ModelError, match="closed"):
        gated.copy(1, demand=True)
    gated.link.close()


@pytest.mark.parametrize("forget", [lambda link: link.close(), lambda link: None], ids=["closed", "forgotten"])
def test_the_thread_ends_with_its_link(forget: Callable[[Any], object]) -> None:
    link = ThreadLink()
    thread = link._thread
    forget(link)
    del link
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_an_emulated_link_is_no_faster_than_asked() -> None:
    speed = EmulatedLink(bytes_per_s=100e6, latency_ns=200_000)
    link = ThreadLink(speed)
    source, target = torch.arange(100_000, dtype=torch.int32).view(torch.uint8), torch.zeros(400_000, dtype=torch.uint8)
    start = time.perf_counter_ns()
    tickets = [link.copy(source, target, demand=True) for _ in range(5)]
    for done, ticket in enumerate(tickets, start=1):
        link.wait(ticket)
        assert time.perf_counter_ns() - start >= done * speed.copy_ns(400_000)
    assert speed.copy_ns(400_000) == 4_200_000
    assert torch.equal(source, target)
    time.sleep(0.02)  # an idle link does not save up speed
    start = time.perf_counter_ns()
    link.wait(link.copy(source, target, demand=True))
    assert time.perf_counter_ns() - start >= speed.copy_ns(400_000)
    link.close()


@pytest.mark.parametrize("speed", [(0.0, 0), (-1.0, 0), (float("nan"), 0), (float("inf"), 0), (1e9, -1)])
def test_impossible_speeds_are_refused(speed: tuple[float, int]) -> None:
    with pytest.raises(HardwareError, match="cannot be emulated"):
        EmulatedLink(*speed)
