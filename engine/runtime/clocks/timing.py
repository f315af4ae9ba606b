"""`Timings`: when each step and each visit ran."""

from dataclasses import dataclass, field

import numpy as np

from engine.runtime.clocks.device_time import DeviceTime, HostTime


@dataclass(frozen=True, slots=True, eq=False)
class Timings:
    """Integer nanoseconds, a row per step or visit.

    A step is a forward pass of the whole model: `step_start`, `step_end`, `step_tokens` (without padding)
    [steps] i64. A visit is a step at one MoE layer: `visit_step` (-1 outside any step), `visit_layer`,
    `visit_start`, `visit_end` and `visit_waited`, the part spent waiting for copies, [visits] i64.

    A step ends when the device is done. `visit_start` is when the gate's choices have reached the host, so the device
    has then finished all earlier work. By the host's clock (`time.perf_counter_ns`, the usual one), `visit_end` and
    `visit_waited` tell on CUDA only when work had been handed over; by the device's own events
    (`OffloadState.time_by`), when it was done and how long the device stood still.
    """

    step_start: np.ndarray
    step_end: np.ndarray
    step_tokens: np.ndarray
    visit_step: np.ndarray
    visit_layer: np.ndarray
    visit_start: np.ndarray
    visit_end: np.ndarray
    visit_waited: np.ndarray


@dataclass(slots=True)
class Clock:
    """Collects `Timings` while a model runs, as marks of one `DeviceTime`."""

    device: DeviceTime = field(default_factory=HostTime)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    visits: list[tuple[int, int, int, int]] = field(default_factory=list)
    waits: list[tuple[int, int, int]] = field(default_factory=list)  # visit, and two marks
    _open: tuple[int, int] | None = None

    def mark(self) -> int:
        return self.device.mark()

    def begin_step(self, tokens: int) -> None:
        self._open = (self.mark(), tokens)

    def count_tokens(self, tokens: int) -> None:
        """How many tokens the step that runs has, which may be known late."""
        if self._open is not None:
            self._open = (self._open[0], tokens)

    def end_step(self) -> None:
        if self._open is not None:
            start, tokens = self._open
            self.steps.append((start, self.mark(), tokens))
            self._open = None

    def add_wait(self, start: int) -> None:
        """Nothing could be computed from `start` until now, in the visit that is added next."""
        self.waits.append((len(self.visits), start, self.mark()))

    def add_visit(self, layer: int, start: int) -> None:
        """A visit that began at `start` ends now."""
        step = -1 if self._open is None else len(self.steps)
        self.visits.append((step, layer, start, self.mark()))

    def timings(self) -> Timings:
        """What has been collected so far."""
        at = self.device.times()
        steps = np.array(self.steps, np.int64).reshape(-1, 3)
        visits = np.array(self.visits, np.int64).reshape(-1, 4)
        waits = np.array(self.waits, np.int64).reshape(-1, 3)
        waits = waits[waits[:, 0] < len(visits)]  # not of a visit that failed
        waited = np.zeros(len(visits), np.int64)
        np.add.at(waited, waits[:, 0], at[waits[:, 2]] - at[waits[:, 1]])
        return Timings(
            at[steps[:, 0]], at[steps[:, 1]], steps[:, 2], visits[:, 0], visits[:, 1], at[visits[:, 2]],
            at[visits[:, 3]], waited,
        )  # fmt: skip
