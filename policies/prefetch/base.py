"""The contract of a prefetcher."""

from typing import ClassVar

import numpy as np

from policies.fields import Policy


class Prefetcher(Policy):
    """Suggests, ranked, experts that a later layer may need. It suggests; the cache decides.

    At each visit, once the layer's own demand is known, the cache calls `observe` and then `suggest`.

    `reads` declares what `hint` holds, best first and padded with -1: "nothing" (all -1), "lookahead" (the target
    layer's experts as ranked by its gate on this layer's input), "predicted" (as ranked by the plan's fitted
    predictor) or "future" (what the target layer will demand: only bounds may).

    `wraps` declares that it can be asked, at the last layers, for the first layers of the next step
    (`prefetch.wrap`): `target` is then at most the layer just observed.
    """

    READABLE: ClassVar[tuple[str, ...]] = ("nothing", "lookahead", "predicted", "future")
    reads: ClassVar[str] = "nothing"
    wraps: ClassVar[bool] = False

    def observe(self, layer: int, demand: np.ndarray) -> None:
        """The experts (keys, in order of first reference) that the current visit demands."""

    def suggest(self, target: int, hint: np.ndarray, out: np.ndarray) -> int:
        """Write ranked expert keys of layer `target` to `out` and return how many."""
        return 0
