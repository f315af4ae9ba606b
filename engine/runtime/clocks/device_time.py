"""`DeviceTime`: when the device reaches points of its work, by events on a GPU, by the host's clock on a CPU.

On a GPU the host runs ahead: when it has handed work over, nothing is done yet. Only events among the work tell.
"""

from time import perf_counter_ns
from typing import Protocol

import numpy as np
import torch

HEAD_START_CYCLES = 400_000  # some 200 us of a GPU's clock: longer than handing over what is then timed


class DeviceTime(Protocol):
    """Marks points of the device's work, and says afterwards when it reached them."""

    def mark(self) -> int:
        """Mark the end of all work so far; returns the mark's number, ascending from 0."""

    def times(self) -> np.ndarray:
        """When each mark was reached, ns i64 [marks], never falling. Waits for the device."""

    def finish(self) -> None:
        """Wait until the device has nothing left to do."""

    def head_start(self) -> None:
        """Keep the device busy for a moment, so that what is handed over next is waiting when it gets there."""


class HostTime:
    """The device is the host: a mark is reached when it is made. Times are `time.perf_counter_ns`'."""

    def __init__(self) -> None:
        self._times: list[int] = []

    def mark(self) -> int:
        self._times.append(perf_counter_ns())
        return len(self._times) - 1

    def times(self) -> np.ndarray:
        return np.array(self._times, np.int64)

    def finish(self) -> None:
        """Nothing is ever left."""

    def head_start(self) -> None:
        """There is nobody to get ahead of."""


class EventTime:
    """Events on the current stream of a CUDA device, each a microsecond or two of the host's time.

    Times count from the host's clock at the first mark.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._start = 0

    def mark(self) -> int:
        if not self._events:
            self._start = perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)
        return len(self._events) - 1

    def times(self) -> np.ndarray:
        self.finish()
        # From one to the next: milliseconds in single precision tell no microseconds after a minute.
        steps = [first.elapsed_time(second) for first, second in zip(self._events, self._events[1:], strict=False)]
        ends = np.concatenate([[0.0], np.maximum(np.array(steps), 0.0).cumsum() * 1e6])[: len(self._events)]
        return self._start + ends.round().astype(np.int64)

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)

    def head_start(self) -> None:
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]


def device_time(device: torch.device) -> DeviceTime:
    """A new one for this device."""
    return EventTime(device) if device.type == "cuda" else HostTime()
