"""The timeline: when each decision happens on a modelled machine.

All times are integer nanoseconds. The rules, in the order a visit meets them (docs/design.md draws them):

1. The dense part runs on the compute stream, then the layer's overhead, the gate's choice is read back, and the cache
   takes its time for each lookup and each insert: that instant is `routed`.
2. Up to `routed` the link begins queued prefetches, first in first out, each in its chunks; at `routed` itself demand
   goes first. A copy or chunk that has begun is never aborted.
3. Demanded experts whose prefetch is still queued (what is left of them, as one copy), then the visit's demand loads,
   are copied in event order. No prefetch begins before them.
4. Asking for the visit's copies, prefetches included, takes the host a fixed time each; nothing is computed meanwhile.
   Then experts that were there at `routed` are computed, in event order; then hits whose copies are under way, in order
   of arrival; then missing ones, in event order, as they arrive. Dequantisation is part of computing an expert.
   Where experts are fused nothing is computed before the last of them is there: the device waits for them in the same
   order, then one call computes them all. A visit whose copies need the slots of its own experts takes more than one
   call: before a copy to such a slot is placed, what the visit has so far is computed.
   Where calls are overlapped, experts that were there at `routed` are computed in a call at once; of one token the rest
   is called as fused experts are, of several tokens each expert by itself as it arrives.
5. The visit's own prefetches join the queue. The visit ends when device and CPU are done.

A copy goes to the engine that is free first (the lower number if both are). It begins when that engine is free, the
copy before it has begun, it has been asked for, the last computation that uses its slot and the last copy to it are
over, and its expert is in host memory. Setup comes first, then the wire, which serves one copy at a time. Engine and
wire are free at the end. Chunks of one expert do not wait for each other.

With a disk, host memory holds the experts of the most recent copies asked for, up to its size. Asking for one that is
not there (at `routed`) puts a read in the disk's queue, first in first out, never taken back. With several lanes as
many reads run together; each takes as long as the number under way when it begins makes it, itself included. A copy
that begins while the disk reads something that the copy's own visit or an earlier one asked for is slower on the wire
(the visit at whose `routed` it was demanded; for what is copied ahead, any read counts).

What the decisions give to the host (HOST, ADMIT) the CPU lane computes, first in first out. It begins when the host has
asked for the visit's copies, and reads the expert from host memory. An admitted expert's copy joins the queue of
prefetches, as the visit comes to it: behind the visit's demand copies, waited for by nobody until a later visit demands
it, given up if it is evicted before. An expert that the lane begins while a copy is under way takes longer by a fixed
share, and so do a copy's bytes that begins while the lane computes; at one instant the lane begins first.

A wait is booked to one cause, or divided. For a missing expert: as much as prefetches still had the link after `routed`
and is not booked yet is `link_busy`, unless the visit itself waits for a copy under way; then, as much as its own read
put its copy off is `disk`; the rest is `demand`. For a hit: `late_prefetch`, or `demand` if its copy was a demand load.
For the CPU at the end of a visit: as much as the CPU itself waited for reads is `disk`; the rest is `cpu`.
"""

from dataclasses import dataclass

import numpy as np

from engine.simulator.costs import Costs
from engine.simulator.cpu_lane import make_lane
from engine.simulator.kernel import LATE, USEFUL, WASTED, run
from engine.simulator.lanes import CAUSES, STALLS
from engine.simulator.log import COLUMNS, make_log
from engine.simulator.machine_state import CPU_BUSY, DISK_BUSY, LINK_BUSY, WAITING, make_host, make_state
from policies.events import Events
from tracekit.demand import Demand

__all__ = ["CAUSES", "LATE", "STALLS", "USEFUL", "WASTED", "Timed", "Timeline"]


@dataclass(frozen=True, slots=True)
class Timed:
    """One piece's times: `visit_end` i64 [visits]; `spent` i64 [steps, causes], nanoseconds by `CAUSES`."""

    visit_end: np.ndarray
    spent: np.ndarray


class Timeline:
    """Runs decisions on a modelled machine, piece by piece.

    After `run`, over all pieces: `spent` i64 [2, causes] sums nanoseconds by phase (prefill, decode) and cause
    (`CAUSES`); they add up to the time that has passed. `prefetches` [3] counts useful, late and wasted ones.
    """

    def __init__(self, costs: Costs, slots: int, experts: int, log: range | None = None) -> None:
        """A machine at rest.

        Args:
            slots: physical slots, staging buffers included.
            experts: experts per layer; an expert's key is `layer * experts + expert`.
            log: the steps whose course is logged, one row per piece of work; none by default.
        """
        self._costs = costs.for_kernel()
        self._call_ns = costs.call_ns if costs.call_ns >= 0 else None
        self._state = make_state(costs, slots, experts)
        self._host = make_host(costs)
        self._lane = make_lane(self._costs, experts)
        self._logged = log or range(0)
        self._log: list[np.ndarray] = [np.empty((0, COLUMNS), np.int64)]
        self.spent = np.zeros((2, len(CAUSES)), np.int64)
        self.prefetches = np.zeros(3, np.int64)

    @property
    def link_busy_ns(self) -> int:
        """Total time in which a copy was under way."""
        return int(self._state.link[LINK_BUSY])

    @property
    def unused(self) -> int:
        """Experts that were prefetched, and neither demanded nor given up so far."""
        return int(self._state.unused.sum())

    @property
    def disk_busy_ns(self) -> int:
        """Total time in which the disk was reading."""
        return int(self._state.other[DISK_BUSY])

    @property
    def cpu_busy_ns(self) -> int:
        """Total time in which the CPU lane was computing."""
        return int(self._state.other[CPU_BUSY])

    @property
    def log(self) -> np.ndarray:
        """i64 [rows, COLUMNS]: what was logged so far (engine.simulator.log)."""
        return np.concatenate(self._log)

    def count_from_here(self) -> None:
        """Sums and busy times begin at nothing; the machine stays as it is."""
        self.spent[:] = 0
        self.prefetches[:] = 0
        self._state.link[LINK_BUSY] = self._state.other[DISK_BUSY] = self._state.other[CPU_BUSY] = 0

    def run(self, demand: Demand, events: Events, context: np.ndarray) -> Timed:
        """Time one piece. `context` [steps] i64: context tokens that the step's attention reads, over its tokens."""
        timed = Timed(np.empty(demand.visits, np.int64), np.zeros((demand.steps, len(CAUSES)), np.int64))
        begin = min(max(self._logged.start - demand.first_step, 0), demand.steps)
        end = min(max(self._logged.stop - demand.first_step, begin), demand.steps)
        self._steps(demand, events, context, timed, 0, begin)
        for step in range(begin, end):
            self._steps(demand, events, context, timed, step, step + 1, logged=True)
        self._steps(demand, events, context, timed, end, demand.steps)
        return timed

    def _steps(
        self,
        demand: Demand,
        events: Events,
        context: np.ndarray,
        timed: Timed,
        begin: int,
        end: int,
        *,
        logged: bool = False,
    ) -> None:
        if begin == end:
            return
        first, last = begin * demand.layers, end * demand.layers
        log = make_log(self._room(events, first, last)) if logged else None
        run(
            self._state,
            self._costs,
            (
                demand.layers,
                demand.start[first : last + 1],
                demand.keys,
                demand.tokens,
                demand.step_tokens[begin:end],
                demand.phase[begin:end],
            ),
            (events.code, events.start[first : last + 1], events.orderly),
            context[begin:end],
            demand.first_step * demand.layers + first,
            log,
            self._call_ns,
            self._host,
            self._lane,
            timed.visit_end[first:last],
            timed.spent[begin:end],
            self.spent,
            self.prefetches,
        )
        if log is not None:
            self._log.append(log.rows[: log.written[0]])

    def _room(self, events: Events, first: int, last: int) -> int:
        """Rows that these visits can write at most: four a visit, and for each event a read, three waits, a copy and a
        computation; and each prefetch may begin, chunk by chunk."""
        count = int(events.start[last] - events.start[first])
        queued = count + int(self._state.other[WAITING])
        return 4 * (last - first) + 6 * count + queued * int(self._costs.chunks.max())
