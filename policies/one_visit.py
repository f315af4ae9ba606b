"""One visit, handed to the kernel in arrays that are used again each time."""

from collections.abc import Sequence

import numpy as np

from policies.cache_state import Batch
from policies.events import EventBuffer


class OneVisit:
    """Arrays for a batch of one visit, used again each time: making them anew would take longer than deciding."""

    def __init__(
        self, experts: int, target: Sequence[int], index: np.dtype, suggestions: int, events: EventBuffer
    ) -> None:
        """`target` [layers] is the layer whose experts a visit's hint ranks; keys are of the type of `index`."""
        self.experts, self.target, self.events = experts, target, events
        keys, signals = np.zeros((2, experts), index), np.zeros((2, experts))
        none = signals[:, :0]
        hint = np.full((1, max(suggestions, 1)), -1, np.int32)
        layer, start = np.zeros(1, np.int32), np.zeros(2, np.int64)
        self._plain = Batch(layer, start, keys[0], keys[1], none[0], none[1], hint)
        self._signalled = self._plain._replace(signal=signals[0], signal_recency=signals[1])
        self._tokens, self._gate = np.zeros(experts, np.int32), np.zeros(experts)

    def batch(
        self,
        layer: int,
        demand: Sequence[int],
        recency: Sequence[int] | None,
        hint: Sequence[int],
        signal: Sequence[float],
        tokens: Sequence[int] = (),
        gate: Sequence[float] = (),
    ) -> Batch:
        """The visit of these, as `ExpertCache.visit` has them. Good until the next."""
        batch = self._signalled if len(signal) else self._plain
        if len(tokens):
            self._tokens[: len(tokens)] = tokens
            batch = batch._replace(tokens=self._tokens)
        if len(gate):
            self._gate[: len(gate)] = gate
            batch = batch._replace(gate=self._gate)
        count, base = len(demand), layer * self.experts
        batch.layer[0], batch.start[1] = layer, count
        batch.demand[:count] = [base + expert for expert in demand]
        same = recency is None or recency is demand
        batch.recency[:count] = batch.demand[:count] if same else [base + expert for expert in recency or ()]
        hints = batch.hint[0]
        hints[:] = -1
        if len(hint):
            ahead = self.target[layer] * self.experts
            ranked = [ahead + expert for expert in hint[: len(hints)]]
            hints[: len(ranked)] = ranked
        if len(signal):
            batch.signal[:count] = signal
            known = dict(zip(demand, signal, strict=True))
            batch.signal_recency[:count] = signal if same else [known[expert] for expert in recency or ()]
        return batch
