"""A prefetcher's hints at each visit: ranked experts of the layer that it looks ahead to."""

from collections.abc import Iterable, Iterator

import numpy as np
from numba import njit

from engine.decisions.foresight import Foresight
from policies.cache_spec import CacheSpec, targets_of
from policies.ranking import rank_lookahead
from tracekit.demand import Demand, step_starts
from tracekit.errors import PlanError
from tracekit.trace import Trace


def iter_hints(trace: Trace, spec: CacheSpec, demands: Iterable[Demand]) -> Iterator[np.ndarray]:
    """The hints of a prefetcher that reads lookahead, for each piece of demand: i32 [visits, count], best first.

    Ranking takes far longer than deciding, and follows from distance and count alone: plans may share it. Raises
    PlanError when the trace lacks the lookahead.
    """
    known = Hints(trace, spec, "lookahead")
    return (known.of(demand) for demand in demands)


class Hints:
    """What a prefetcher reads, as ranked keys of the target layer: i32 [visits, count], padded with -1.

    `looks_on`: it reads of a piece's last step what the step after it demands.
    """

    def __init__(self, trace: Trace, spec: CacheSpec, reads: str) -> None:
        self.spec, self.reads = spec, reads
        self.count = 0 if reads == "nothing" else min(spec.count, spec.experts)
        self.experts_per_layer = trace.manifest.experts_per_layer
        self.top_k = trace.top_k
        self.looks_on = reads == "future" and spec.wrap
        self.foresight = Foresight(trace, spec) if reads == "predicted" else None
        if reads == "lookahead":
            self.trace, self.kind = trace, f"lookahead-{spec.distance}"
            if self.kind not in trace.kinds:
                have = ", ".join(str(d) for d in trace.lookahead_distances) or "none"
                raise PlanError(
                    f"prefetcher {spec.prefetch!r} reads lookahead logits at distance {spec.distance}, which "
                    f"{trace.path} does not hold (it has: {have}); record with --lookahead {spec.distance} or choose "
                    "another prefetcher"
                )
            self.starts = step_starts(trace.step)

    def forget(self) -> None:
        """Nothing is remembered of earlier steps."""
        if self.foresight is not None:
            self.foresight.scores.forget()

    def none(self, demand: Demand) -> np.ndarray:
        """No hint at any visit."""
        return np.full((demand.visits, self.count), -1, np.int32)

    def of(self, demand: Demand, following: Demand | None = None) -> np.ndarray:
        """The hints at the visits of a piece; `following` is the next one, if there is one and `looks_on`."""
        spec = self.spec
        hints = self.none(demand).reshape(demand.steps, spec.layers, self.count)
        if self.reads == "lookahead":
            starts = self.starts[demand.first_step : demand.first_step + demand.steps + 1]
            rows = self.trace.dense_of(self.kind, int(starts[0]), int(starts[-1]))
            assert rows is not None
            for layer in range(spec.layers - spec.distance):
                target = layer + spec.distance
                logits = rows[:, layer, : self.experts_per_layer[target]]
                ranked = rank_lookahead(logits, starts - starts[0], self.top_k, self.count)
                hints[:, layer] = np.where(ranked >= 0, ranked + target * spec.experts, -1)
        elif self.foresight is not None:
            hints[:] = self.foresight.hints(demand)
        elif self.reads == "future":
            ahead = following.part(0, 1) if following is not None else demand.part(0, 0)
            keys = np.concatenate([demand.keys, ahead.keys])
            start = np.concatenate([demand.start, len(demand.keys) + ahead.start[1:]])
            _future(keys, start, targets_of(spec), hints)
        return hints.reshape(demand.visits, self.count)


@njit(cache=True)
def _future(keys: np.ndarray, start: np.ndarray, targets: np.ndarray, hints: np.ndarray) -> None:
    layers = len(targets)
    for step in range(hints.shape[0]):
        for layer in range(layers):
            target = targets[layer]
            visit = (step if target > layer else step + 1) * layers + target
            if target < 0 or visit + 1 >= len(start):
                continue
            first, last = start[visit], start[visit + 1]
            for i in range(min(last - first, hints.shape[2])):
                hints[step, layer, i] = keys[first + i]
