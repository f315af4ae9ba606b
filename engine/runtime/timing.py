"""`Timings`: when each step and each visit ran, on the host's clock."""

from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Timings:
    """Integer nanoseconds of `time.perf_counter_ns`, a row per step or visit.

    A step is a forward pass of the whole model: `step_start`, `step_end`, `step_tokens` (without padding)
    [steps] i64. A visit is a step at one MoE layer: `visit_step` (-1 outside any step), `visit_layer`,
    `visit_start`, `visit_end` and `visit_waited`, the part spent waiting for copies, [visits] i64.

    On CUDA the host runs ahead of the device. A step ends when the device is done. `visit_start` is taken
    when the gate's choices have reached the host, so the device has then finished all earlier work and
    differences of starts are device time; `visit_end` and `visit_waited` tell only when the work had been
    handed over.
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
    """Collects `Timings` while a model runs."""

    steps: list[tuple[int, int, int]] = field(default_factory=list)
    visits: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _open: tuple[int, int] | None = None

    def begin_step(self, tokens: int) -> None:
        self._open = (perf_counter_ns(), tokens)

    def end_step(self) -> None:
        if self._open is not None:
            start, tokens = self._open
            self.steps.append((start, perf_counter_ns(), tokens))
            self._open = None

    def add_visit(self, layer: int, start: int, waited: int) -> None:
        """A visit that began at `start` ends now."""
        step = -1 if self._open is None else len(self.steps)
        self.visits.append((step, layer, start, perf_counter_ns(), waited))

    def timings(self) -> Timings:
        """What has been collected so far."""
        steps = np.array(self.steps, np.int64).reshape(-1, 3)
        visits = np.array(self.visits, np.int64).reshape(-1, 5)
        return Timings(*steps.T, *visits.T)
