"""What decode steps have to compute whatever is decided: the part of a bound that no copy and no cache changes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.lanes import expert_ns
from engine.simulator.options import compiled
from tracekit.demand import Demand
from tracekit.rows import DECODE


class LeastWork(NamedTuple):
    """Nanoseconds of a trace's decode steps on a machine.

    `fixed`: dense parts, a layer's and a step's overheads, readbacks. `experts`: every demanded expert on the device;
    `calls` comes on top where one call computes a visit's experts. `dearest`: the most that one of these experts takes.
    """

    fixed: int
    experts: int
    calls: int
    dearest: int


class LeastWorks:
    """The decode work of a trace on several machines, added up piece by piece."""

    def __init__(self, machines: Sequence[Costs]) -> None:
        self._machines = [costs.for_kernel() for costs in machines]
        self._sums = np.zeros((len(machines), 4), np.int64)

    def add(self, demand: Demand, context: np.ndarray) -> None:
        """One piece; `context` i64 [steps] as the timeline takes it. Prefill steps are passed over."""
        decode = np.flatnonzero(demand.phase == DECODE)
        if len(decode):
            for costs, sums in zip(self._machines, self._sums, strict=True):
                _add(costs, decode, demand.layers, demand.start, demand.tokens, demand.step_tokens, context, sums)

    @property
    def found(self) -> list[LeastWork]:
        """One of each machine."""
        return [LeastWork(*sums) for sums in self._sums.tolist()]


@compiled(kept=True)
def _add(
    costs: Costs,
    steps: np.ndarray,
    layers: int,
    start: np.ndarray,
    tokens: np.ndarray,
    step_tokens: np.ndarray,
    context: np.ndarray,
    sums: np.ndarray,
) -> None:
    """The same arithmetic as the kernel's (engine.simulator.kernel), step by step."""
    for step in steps:
        context_ns = context[step] * costs.context_ps // 1000
        arithmetic_ns = step_tokens[step] * costs.dense_token_ps // 1000
        sums[0] += costs.step_ns
        for layer in range(layers):
            first, last = start[step * layers + layer], start[step * layers + layer + 1]
            dense = max(costs.dense_ns[layer] + context_ns, arithmetic_ns)
            sums[0] += dense + costs.layer_overhead_ns + costs.readback_ns
            if last > first:
                sums[2] += max(costs.call_ns, 0)
            if step_tokens[step] == 1:
                one = expert_ns(costs, layer, 1)
                sums[1] += one * (last - first)
                if last > first:
                    sums[3] = max(sums[3], one)
            else:
                for i in range(first, last):
                    one = expert_ns(costs, layer, tokens[i])
                    sums[1] += one
                    sums[3] = max(sums[3], one)
