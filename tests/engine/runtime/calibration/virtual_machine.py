"""A machine in virtual time: a host that hands work over, a device that computes, copies beside it; all costs known.

The real engine runs on it, on the CPU: what it computes is real, only when is made up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from engine.runtime import offload_state
from engine.runtime.links.queued_link import Copy, Progress, Source, Ticket, fill
from engine.runtime.offload_state import OffloadState


@dataclass(frozen=True)
class Costs:
    """Nanoseconds, but for the rate."""

    dense: int = 300_000
    expert: int = 100_000
    pair: int = 4_000
    readback: int = 15_000
    decide: int = 40_000
    ask: int = 30_000
    launch: int = 5_000
    copy_setup: int = 20_000
    bytes_per_s: float = 2e8
    in_flight: int = 2

    def wire(self, size: int) -> int:
        return round(size * 1e9 / self.bytes_per_s)


class VirtualMachine:
    """A host, a stream of the device and a link, each with the time until which it is taken."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.host = self.stream = self.wire = 0
        self.landed = [0] * costs.in_flight  # when the copies in flight before this one have
        self.sizes: list[int] = []

    def launch(self, ns: int) -> None:
        """The host hands over work that takes the device so long."""
        self.host += self.costs.launch
        self.stream = max(self.stream, self.host) + ns

    def read_back(self) -> None:
        """The host waits for the device, and then decides."""
        self.host = max(self.host, self.stream) + self.costs.readback + self.costs.decide

    def time(self) -> "VirtualTime":
        return VirtualTime(self)


class VirtualTime:
    """`DeviceTime` of a virtual machine: a mark is reached when all that was handed over before it is done."""

    def __init__(self, machine: VirtualMachine) -> None:
        self.machine = machine
        self.marks: list[int] = []

    def mark(self) -> int:
        self.machine.stream = max(self.machine.stream, self.machine.host)
        self.marks.append(self.machine.stream)
        return len(self.marks) - 1

    def times(self) -> np.ndarray:
        self.finish()
        return np.array(self.marks, np.int64)

    def finish(self) -> None:
        self.machine.host = max(self.machine.host, self.machine.stream)

    def head_start(self) -> None:
        self.machine.stream = max(self.machine.stream, self.machine.host) + 1_000_000


class HandedOver(VirtualTime):
    """The host's clock: when it had handed work over."""

    def mark(self) -> int:
        self.marks.append(self.machine.host)
        return len(self.marks) - 1


class VirtualTicket(Ticket):
    landed = 0


class VirtualLink:
    """Copies at once, and says that it took the link's time; not more than `in_flight` under way together."""

    piece_bytes = 0

    def __init__(self, machine: VirtualMachine) -> None:
        self.machine, self.in_flight = machine, machine.costs.in_flight

    def copies(self, asked: Sequence[Copy]) -> list[Ticket]:
        return [self._copy(source, target, demand=demand) for source, target, demand in asked]

    def _copy(self, source: Source, target: Any, *, demand: bool) -> Ticket:
        machine, costs = self.machine, self.machine.costs
        machine.host += costs.ask
        fill(target, source)
        ticket = VirtualTicket(source, target, demand=demand)
        ticket.progress = Progress.DONE
        begin = max(machine.host, machine.stream, machine.landed[0])
        ticket.landed = max(begin + costs.copy_setup, machine.wire) + costs.wire(source.numel())
        machine.wire = ticket.landed
        machine.landed = [*machine.landed[1:], ticket.landed]
        machine.sizes.append(source.numel())
        return ticket

    def promote(self, ticket: Ticket) -> None:
        """Copies leave in the order asked."""

    def cancel(self, ticket: Ticket) -> int:
        return 0

    def wait(self, ticket: Ticket) -> None:
        assert isinstance(ticket, VirtualTicket)
        self.machine.stream = max(self.machine.stream, self.machine.host, ticket.landed)

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def running_on(machine: VirtualMachine, model: Any, state: OffloadState) -> Iterator[None]:
    """The offloaded `model` runs on the machine: its dense parts, read-backs, experts and copies take virtual time."""
    costs = machine.costs
    state.link.close()
    state.link = state._loader.link = VirtualLink(machine)
    read_back = offload_state.read_back

    def timed_read_back(*given: Any) -> Any:
        machine.read_back()
        return read_back(*given)

    def timed_expert(forward: Any, weights: Any, rows: Any) -> Any:
        machine.launch(costs.expert + costs.pair * (len(rows) - 1))
        return forward(weights, rows)

    state._forward = [partial(timed_expert, forward) for forward in state._forward]
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda *_: machine.launch(costs.dense))
        for layer in model.model.layers
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload_state, "read_back", timed_read_back)
        yield
    for hook in hooks:
        hook.remove()
