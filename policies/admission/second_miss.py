"""Not at the first miss."""

import numpy as np

from policies.admission.base import Admission
from policies.fields import per_expert


class SecondMiss(Admission):
    """Admits an expert only if it was missed before, since it last left the cache: who comes once displaces nobody.

    Caches of the web keep an object at its second request likewise ("cache on second hit"); those forget by time.
    """

    name = "second-miss"
    summary = "what was missed before since it last left the cache"
    source = "after Maggs & Sitaraman 2015, Algorithmic Nuggets in Content Delivery, CCR 45(3)"

    missed = per_expert(np.uint8)

    def admits(self, expert: int, group: int, now: int, signal: float) -> bool:
        before = self.missed[expert]
        self.missed[expert] = 1
        return before > 0

    def on_evict(self, expert: int, group: int, now: int) -> None:
        self.missed[expert] = 0
