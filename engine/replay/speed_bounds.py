"""Bounds on decode speed: no plan of the same capacity is faster on that machine, whatever it evicts or prefetches.

Take the lookups that clairvoyant caching at that capacity has to miss (engine.replay.bounds): at least so many experts
are copied, or computed by the CPU, in any plan, for a copy ahead of demand is no less of a copy. So the time of the
decode steps is at least

    what these copies take of the link, one after the other            (misses are copied)
    what the device computes: dense parts, overheads, every expert     (misses are copied)

and where the host computes x of the experts, where all of them take E nanoseconds on the device, M are missed, w is
the least that a copy takes of the link, c the least that an expert takes on the CPU, e the most it takes on the device:

    fixed + c x    the CPU works between a layer's gate and its end, never beside the dense part or the overheads
    fixed + E - e x
    w (M - x)

whichever is largest, at the x that makes it smallest. What is left out makes it lower and never too high: x need be
no whole number, and every expert may choose among the cheapest copies and computations.
"""

from typing import NamedTuple

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.least_work import LeastWork


class Fewest(NamedTuple):
    """The fewest copies of decode steps: `loads` i64 [layers] demand loads of clairvoyant decisions. Of these `spared`
    may have been copied into staging buffers before decode began. `together`: one cache is for all layers, so that how
    the loads are divided among layers says nothing: another plan may spare the dearer ones."""

    loads: np.ndarray
    spared: int
    together: bool


class LeastTimes(NamedTuple):
    """Nanoseconds of all decode steps, of the trace's layers: missing experts alone; computing alone; both."""

    link: float
    compute: float
    best: float

    def least(self, other: "LeastTimes") -> "LeastTimes":
        """Of two ways of computing the one that takes less."""
        return min(self, other, key=lambda times: times.best)


def least_times(fewest: Fewest, costs: Costs, work: LeastWork) -> LeastTimes:
    """The least that decode steps take on a machine: see above."""
    wire = costs.least_link_ns
    missing = max(0, int(fewest.loads.sum()) - fewest.spared)
    copies = float(missing * wire.min())
    if not fewest.together:
        copies = float(max(0, int(fewest.loads @ wire) - fewest.spared * int(wire.max())))
    fixed = work.fixed
    if not costs.cpu:
        fixed += missing * costs.copy_overhead_ns
        computing = float(fixed + work.experts + work.calls)
        return LeastTimes(copies, computing, max(copies, computing))
    read, arithmetic = int(costs.cpu_expert_ns.min()), costs.cpu_token_ps // 1000
    on_cpu = max(read, arithmetic) + costs.cpu_overhead_ns
    copy = int(wire.min())
    together = on_cpu * work.experts / (on_cpu + work.dearest) if on_cpu + work.dearest else 0.0
    while_copying = on_cpu * (missing * copy - fixed) / (on_cpu + copy) if on_cpu + copy else 0.0
    alone = on_cpu * missing * copy / (on_cpu + copy) if on_cpu + copy else 0.0
    return LeastTimes(alone, fixed + together, fixed + max(0.0, together, while_copying))
