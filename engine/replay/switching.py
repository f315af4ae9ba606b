"""What switching between domains costs: copies of what was not there."""

from collections.abc import Sequence

import numpy as np

from engine.replay.result import Switching
from policies.events import KEY_MASK, KIND_SHIFT, PREFETCH


class Switches:
    """Counts the switches of a pass: hand `add` to `run(on_switch=...)`."""

    def __init__(self, layers: int, experts: int, warm_up: int = 0) -> None:
        """Those of the first `warm_up` steps are not counted."""
        self._experts, self._warm_up = experts, warm_up
        self._count = 0
        self._copies = np.zeros(layers, np.int64)

    def add(self, step: int, codes: np.ndarray, begins: bool) -> None:
        """Take note of one switch and its events, or of more of the last one's."""
        if step >= self._warm_up:
            copied = (codes[codes >> KIND_SHIFT == PREFETCH] & KEY_MASK) // self._experts
            self._copies += np.bincount(copied, minlength=len(self._copies))
            self._count += begins

    def found(self, sizes: Sequence[int]) -> Switching:
        """What was counted, experts of each layer being of these bytes (none: unknown)."""
        copies = self._copies.tolist()
        total = sum(count * size for count, size in zip(copies, sizes, strict=True)) if sizes else None
        return Switching(switches=self._count, copies=sum(copies), bytes_loaded=total)
