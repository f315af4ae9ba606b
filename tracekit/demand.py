"""Demand: the distinct experts of each visit, in the orders that decisions need."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from tracekit.arrays import I32, I64, U8, U16, U32
from tracekit.rows import UNUSED
from tracekit.trace import Trace

CHUNK = 1 << 17
"""References looked at at once: what is made of them stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What consecutive steps demand, visit by visit; one visit is one step at one MoE layer.

    An expert's key is `layer * experts + expert`. Arrays:
        layer [visits] i32; start [visits + 1] i64, a visit's part of the arrays that follow;
        keys u32: distinct experts in (token, slot) order of first reference; recency u32: the same in order of last
        reference; tokens i32: how many tokens of the visit chose the expert, in order of `keys`;
        step_tokens [steps] i32; phase [steps] u8 (0 prefill, 1 decode, of the step's first token).
    """

    layers: int
    experts: int
    first_step: int
    layer: I32
    start: I64
    keys: U32
    recency: U32
    tokens: I32
    step_tokens: I32
    phase: U8

    @property
    def steps(self) -> int:
        return len(self.step_tokens)

    @property
    def visits(self) -> int:
        return len(self.layer)

    def part(self, first: int, last: int) -> "Demand":
        """The steps from number `first` of these up to `last`."""
        visits = slice(first * self.layers, last * self.layers + 1)
        start = self.start[visits]
        lookups = slice(int(start[0]), int(start[-1]))
        keys = self.keys[lookups]
        return replace(
            self,
            first_step=self.first_step + first,
            layer=self.layer[visits.start : visits.stop - 1],
            start=start - start[0],
            keys=keys,
            recency=keys if self.recency is self.keys else self.recency[lookups],
            tokens=self.tokens[lookups],
            step_tokens=self.step_tokens[first:last],
            phase=self.phase[first:last],
        )


def step_starts(step: I32) -> I64:
    """Row at which each step begins, and the number of rows at the end: i64 [steps + 1]."""
    if len(step) == 0:
        return np.zeros(1, np.int64)
    edges = np.flatnonzero(np.diff(step)) + 1
    return np.concatenate([[0], edges, [len(step)]]).astype(np.int64)


def demand_of(
    experts: U16,
    num_experts: int,
    starts: I64,
    phase: U8,
    first_step: int = 0,
) -> Demand:
    """Demand of the steps that `starts` delimits.

    Args:
        experts: [rows of these steps, layers, k] u16, 65535 where unused.
        num_experts: experts per layer (the most of any layer).
        starts: [steps + 1] i64 rows, as from `step_starts`.
        phase: [tokens] u8.
    """
    steps, layers = len(starts) - 1, experts.shape[1]
    # Unsigned, so that compiled code need not ask whether an index counts from the end.
    keys = np.empty(experts.size, np.uint32)
    start = np.zeros(steps * layers + 1, np.int64)
    count = -1
    if len(experts) == steps:
        count = _single(experts, num_experts, keys, start)
        recency, tokens = keys, np.ones(max(count, 0), np.int32)
    if count < 0:
        recency, tokens = np.empty(experts.size, np.uint32), np.empty(experts.size, np.int32)
        count = _distinct(experts, starts - starts[0], num_experts, keys, recency, tokens, start)
    return Demand(
        layers=layers,
        experts=num_experts,
        first_step=first_step,
        layer=np.tile(np.arange(layers, dtype=np.int32), steps),
        start=start,
        keys=keys[:count],
        recency=recency[:count],
        tokens=tokens[:count],
        step_tokens=np.diff(starts).astype(np.int32),
        phase=phase[starts[:-1]],
    )


def iter_demand(trace: Trace, chunk: int = CHUNK) -> Iterator[Demand]:
    """Demand of a whole trace in pieces of whole steps with about `chunk` references each, in order."""
    starts = step_starts(trace.step)
    steps = len(starts) - 1
    rows_per_chunk = max(1, chunk // (trace.layers * trace.top_k))
    first = 0
    while first < steps:
        last = int(np.searchsorted(starts, starts[first] + rows_per_chunk, side="right")) - 1
        last = min(max(last, first + 1), steps)
        rows = trace.experts_of(int(starts[first]), int(starts[last]))
        yield demand_of(rows, trace.num_experts, starts[first : last + 1], trace.phase, first)
        first = last


@njit(cache=True)
def _single(experts: U16, num_experts: int, keys: U32, start: I64) -> int:
    """`_distinct` where each step is one token: first and last references are in one order. -1 if a row repeats one."""
    steps, layers, k = experts.shape
    mark = np.zeros(num_experts, np.int64)
    n = np.uint64(0)
    visit = 0
    for step in range(steps):
        for layer in range(layers):
            base = np.uint32(layer * num_experts)
            visit += 1
            for slot in range(k):
                expert = experts[step, layer, slot]
                if expert != UNUSED:
                    if mark[expert] == visit:
                        return -1
                    mark[expert] = visit
                    keys[n] = base + expert
                    n += np.uint64(1)
            start[visit] = n
    return int(np.int64(n))


@njit(cache=True)
def _distinct(rows: U16, starts: I64, num_experts: int, keys: U32, recency: U32, tokens: I32, start: I64) -> int:
    layers, k = rows.shape[1], rows.shape[2]
    index = np.full(num_experts, -1, np.int64)
    n = 0
    for step in range(len(starts) - 1):
        first, last = starts[step], starts[step + 1]
        for layer in range(layers):
            base = layer * num_experts
            begin = n
            for row in range(first, last):
                for slot in range(k):
                    expert = rows[row, layer, slot]
                    if expert == UNUSED:
                        continue
                    if index[expert] < 0:
                        index[expert] = n
                        keys[n] = base + expert
                        tokens[n] = 0
                        n += 1
                    tokens[index[expert]] += 1
            # Last references, found backwards; `index` doubles as the mark of what is still to be placed.
            place = n
            row = last - 1
            while place > begin:
                for slot in range(k - 1, -1, -1):
                    expert = rows[row, layer, slot]
                    if expert != UNUSED and index[expert] >= 0:
                        place -= 1
                        recency[place] = base + expert
                        index[expert] = -1
                row -= 1
            start[step * layers + layer + 1] = n
    return n
