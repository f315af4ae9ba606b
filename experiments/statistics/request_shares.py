"""What each request of a routing has of the steps' times, bytes and loads: requests share a step's by their tokens."""

from dataclasses import dataclass

import numpy as np

from engine.curves.stack_curve import Sharing
from engine.replay.passes import Steps
from tracekit.rows import DECODE
from tracekit.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class RequestShares:
    """The tokens of a routing's decode steps, by request; of all steps where the routing decodes nothing.

    `step` and `who` [tokens]: the step and the place of the request in `requests`; `tokens` [requests] counts them.
    """

    steps: Steps
    step: np.ndarray
    who: np.ndarray
    requests: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> "RequestShares":
        steps = Steps.of(trace)
        step = np.repeat(np.arange(len(steps.phase)), np.diff(steps.starts))
        own = steps.phase[step] == DECODE
        if not own.any():
            own = np.ones(len(step), np.bool_)
        requests, who = np.unique(trace.request[own], return_inverse=True)
        return cls(steps, step[own], who, requests, np.bincount(who))

    @property
    def sharing(self) -> Sharing:
        """The same, for passes that count as they go."""
        return Sharing(self.step, self.who, 1 / np.diff(self.steps.starts), len(self.requests))

    def of_each(self, of_step: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """What each request has of `of_step` [steps], the tokens of a step sharing evenly: i64 [requests], rounded."""
        per_token = of_step / np.diff(self.steps.starts)
        found: np.ndarray = np.rint(np.bincount(self.who, per_token[self.step]) * scale).astype(np.int64)
        return found

    def percentile(self, of_step: np.ndarray, share: float, scale: float = 1.0) -> np.ndarray:
        """The percentile of `of_step` over each request's decode tokens: i64 [requests], linear as numpy's, rounded."""
        values = of_step[self.step]
        values = values[np.lexsort((values, self.who))] * scale
        place = share * (self.tokens - 1)
        low = np.floor(place).astype(np.int64)
        first = np.cumsum(self.tokens) - self.tokens
        high = np.minimum(low + 1, self.tokens - 1)
        between = (place - low) * (values[first + high] - values[first + low])
        found: np.ndarray = np.rint(values[first + low] + between).astype(np.int64)
        return found
