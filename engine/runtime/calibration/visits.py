"""Measured visits of a running model, over many rounds of the same decisions, and what their time grows with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from engine.runtime.clocks.timing import Timings
from engine.runtime.offload_state import OffloadState
from policies.events import ADMIT, LOAD, PREFETCH


class Growth(NamedTuple):
    """Nanoseconds by which a visit grows: with each expert, further token of one, copy, and where a gate is asked."""

    expert: float
    pair: float
    copy: float
    lookahead: float


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """A row for each visit, medians over rounds; f8 [visits] and bool [visits], times in nanoseconds.

    `duration` is from the gate's choice to the end, waiting left out; `gap` from the visit before, of the same step,
    NaN where there is none; what is counted anyway (`counted` of a gap) is taken away from both. `further` are (token,
    expert) pairs beyond each expert's first. `looks`: a later gate was asked. `step` is the number of a visit's step
    among those that have visits. Of each of these, `whole` is what it took, likewise, and `outside` the part before its
    first visit and after its last.
    """

    duration: np.ndarray
    gap: np.ndarray
    experts: np.ndarray
    further: np.ndarray
    copies: np.ndarray
    looks: np.ndarray
    decode: np.ndarray
    step: np.ndarray
    counted: float
    whole: np.ndarray
    outside: np.ndarray
    decode_steps: np.ndarray

    @classmethod
    def of(cls, state: OffloadState, rounds: Sequence[Timings], dense_ns: float, expert_ns: float) -> "Visits":
        """What a state did again and again: decisions are the same each time, and the last log is at hand."""
        log, first = state.log, rounds[0]
        count = len(first.visit_layer)
        experts = np.bincount(log.visit[log.kind <= ADMIT], minlength=count).astype(float)
        copies = np.bincount(log.visit[(log.kind >= LOAD) & (log.kind <= PREFETCH)], minlength=count).astype(float)
        distance = state.lookahead_distance
        looks = np.zeros(count, bool) if distance is None else first.visit_layer + distance < len(state.layers)
        tokens = first.step_tokens[first.visit_step]
        waited = _median([one.visit_waited for one in rounds])
        spent = _median([one.visit_end - one.visit_start - one.visit_waited for one in rounds])
        gap = np.full(count, np.nan)
        gap[1:] = _median([one.visit_start[1:] - one.visit_end[:-1] for one in rounds])
        opening = np.flatnonzero(np.diff(first.visit_step, prepend=-2))
        closing = np.append(opening[1:], count) - 1
        gap[opening] = np.nan
        steps = first.visit_step[opening]
        outside = _median(
            [
                (one.visit_start[opening] - one.step_start[steps]) + (one.step_end[steps] - one.visit_end[closing])
                for one in rounds
            ]
        )
        whole = _median([(one.step_end - one.step_start)[steps] for one in rounds])
        whole -= np.add.reduceat(waited, opening)
        return cls(
            duration=spent - experts * expert_ns,
            gap=gap - dense_ns,
            experts=experts,
            further=np.maximum(tokens * state.top_k - experts, 0.0),
            copies=copies,
            looks=looks,
            decode=tokens == 1,
            step=np.repeat(np.arange(len(opening)), closing - opening + 1),
            counted=dense_ns,
            whole=whole - np.add.reduceat(dense_ns + experts * expert_ns, opening),
            outside=outside,
            decode_steps=first.step_tokens[steps] == 1,
        )

    def explained(self, work: Growth) -> np.ndarray:
        """What the fit says of each visit, its fixed time left out."""
        return work.expert * self.experts + work.copy * self.copies + work.lookahead * self.looks

    def step_rest(self, gap: float) -> float:
        """Median time of a decode step outside its visits and the gaps between them."""
        found = self.outside[self.decode_steps] - self.counted - gap
        return max(0.0, float(np.median(found))) if len(found) else 0.0

    def beyond(self, work: Growth, per_layer: float, per_step: float, ahead: float) -> float:
        """What a layer of whole decode steps takes beyond what the parts say, in the mean."""
        if not self.decode_steps.any():
            return 0.0
        parts = self.explained(work) + per_layer + ahead * self.looks
        said = np.bincount(self.step, parts) + per_step
        left, layers = (self.whole - said)[self.decode_steps], np.bincount(self.step)[self.decode_steps]
        return float(left.sum() / layers.sum())


def fit_visits(visits: Sequence[Visits]) -> Growth:
    """How visits grow, by least squares, nothing negative; relative errors count.

    A visit of several tokens has a fixed time of its own: sorting them is more than a step of one token does. Tokens
    count from an expert's second on: what the first one takes is told from models that demand more or fewer experts.
    """
    rows, times = [], []
    for one in visits:
        fixed = np.ones_like(one.duration)
        rows.append(
            np.stack([fixed, ~one.decode, one.experts, one.further, one.copies, one.looks], axis=1).astype(float)
        )
        times.append(one.duration)
    columns, duration = np.concatenate(rows), np.maximum(np.concatenate(times), 0.0)
    weight = 1 / np.maximum(duration, 1.0)
    found, _ = nnls(columns * weight[:, None], duration * weight)
    _, _, expert, pair, copy, lookahead = (float(value) for value in found)
    return Growth(expert, pair, copy, lookahead)


def fit_gaps(visits: Sequence[Visits]) -> tuple[float, float]:
    """Time between two visits of a decode step: of the mean model without asking ahead, and how much more with it."""
    plain, more = [], []
    for one in visits:
        inner = one.decode & ~np.isnan(one.gap)
        asked, others = (one.gap[inner & which] for which in (one.looks, ~one.looks))
        if len(others):
            plain.append(float(np.median(others)))
        if len(asked) and len(others):
            more.append(float(np.median(asked) - np.median(others)))
    return (float(np.mean(plain)) if plain else 0.0), max(0.0, float(np.mean(more))) if more else 0.0


def _median(rounds: Sequence[np.ndarray]) -> np.ndarray:
    found: np.ndarray = np.median(np.stack(rounds), axis=0).astype(float)
    return found
