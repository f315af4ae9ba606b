"""Recorded traces against the prior of their granularity: was what they did between the least local and the most?"""

import tempfile
from pathlib import Path

import msgspec

from experiments.research.priors.figures import lru
from tracekit.priors import LEVELS, Level, family_of, prior_trace
from tracekit.rows import PREFILL
from tracekit.stats import describe
from tracekit.trace import Trace

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Of the experts of a layer: cache sizes that are scored."""
WINDOWS = (4, 16)
"""Consecutive tokens whose distinct experts are counted."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a recorded trace, and what the prior of its granularity said."""

    trace: str
    experts: int
    top_k: int
    family: str
    figure: str
    recorded: float
    said: dict[Level, float]

    @property
    def inside(self) -> bool:
        return min(self.said.values()) <= self.recorded <= max(self.said.values())


def score(trace: Trace, name: str, seed: int = 0) -> list[Point]:
    """Hits of LRU and unions of tokens, with as many tokens, prompts and requests drawn as were recorded.

    The family is one that was not fitted to the model of that name.
    """
    prompts = int((trace.phase == PREFILL).sum())
    decode, requests = trace.tokens - prompts, max(1, trace.manifest.requests)
    family = family_of(trace.num_experts, trace.top_k, without=name)
    said: dict[str, dict[Level, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            drawn = prior_trace(
                Path(folder) / f"{level}.trace",
                trace.manifest.experts_per_layer,
                trace.top_k,
                level=level,
                tokens=decode,
                prompt_tokens=round(prompts / requests),
                requests=requests,
                seed=seed,
                family=family,
            )
            for figure, value in measured(drawn).items():
                said.setdefault(figure, {})[level] = value
    return [
        Point(
            trace=name,
            experts=trace.num_experts,
            top_k=trace.top_k,
            family=family.name,
            figure=figure,
            recorded=value,
            said=said[figure],
        )
        for figure, value in measured(trace).items()
    ]


def measured(trace: Trace) -> dict[str, float]:
    """The figures that are scored, by their names."""
    experts = trace.num_experts
    slots = sorted({max(trace.top_k, round(share * experts)) for share in SHARES} - {experts})
    unions = describe(trace).working_set
    return {f"LRU, {count} slots a layer": lru(trace, count) for count in slots} | {
        f"experts of {window} tokens": unions[window] for window in WINDOWS if window in unions
    }
