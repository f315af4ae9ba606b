"""What cells of one routing share: the trace's demand, clairvoyant decisions, curves.

Each is made once, by whichever thread asks first; the others wait for it.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from engine.curves.stack_curve import STACK_CURVES, Scope, StackCurve
from engine.decisions.hints import iter_hints
from engine.decisions.rerouted import rerouted, routing_spec
from engine.replay.bounds import as_small_as_any, fewest_decode_loads, is_bounded
from engine.replay.passes import Replayed, run
from engine.replay.setting import Setting
from engine.replay.speed_bounds import Fewest
from engine.simulator.costs import Costs
from engine.simulator.least_work import LeastWork, LeastWorks
from experiments.statistics.request_shares import RequestShares
from experiments.study.cells import Routing
from policies.cache_spec import CacheSpec
from policies.registry import prefetcher
from policies.rerouting import Altered
from tracekit.demand import Demand, iter_demand
from tracekit.errors import StudyError
from tracekit.stats.independence import looks_independent
from tracekit.trace import Trace

SHARED_LOOKUPS = 64_000_000
"""Up to this many chosen experts a routing's demand stays in memory, 12 bytes each, for all plans."""
REQUEST_COUNTS = 1 << 24
"""Up to this many numbers, 16 bytes each, a curve keeps what each request has of it."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Best:
    """Clairvoyant decisions at one capacity: what they come to, and the fewest copies of decode."""

    done: Replayed
    fewest: Fewest | None


class Played(NamedTuple):
    """The routing that a plan is replayed on: the recorded one, or that as the plan alters it."""

    trace: Trace
    demands: list[Demand] | None
    hints: Callable[[CacheSpec], list[np.ndarray] | None]
    altered: Altered | None


class Shared:
    """Values by name, each made once, whichever thread asks first."""

    def __init__(self) -> None:
        self._locks: dict[Any, threading.Lock] = {}
        self._made: dict[Any, Any] = {}
        self._guard = threading.Lock()

    def get(self, name: Any, make: Callable[[], T]) -> T:
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]  # type: ignore[no-any-return]


class SharedRoutings:
    """Everything that the cells of a study share, in one process; threads may use it side by side."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._own = threading.local()

    def of(self, routing: Routing) -> "SharedRouting":
        """What is shared of one routing. A trace reads ahead in one place, so each thread opens its own."""
        if getattr(self._own, "routing", None) != routing:
            trace = routing.open()
            if self._shared.get(("digest", routing.path), lambda: Trace.open(routing.path).digest) != routing.digest:
                raise StudyError(
                    f"{routing.path} is not the trace that the study began with: it was replaced meanwhile"
                )
            self._own.routing, self._own.shared = routing, SharedRouting(routing, trace, self._shared)
        found: SharedRouting = self._own.shared
        return found


class SharedRouting:
    """One routing, opened by one thread, and what is shared of it."""

    def __init__(self, routing: Routing, trace: Trace, shared: Shared) -> None:
        self.routing, self.trace, self._shared = routing, trace, shared

    @property
    def requests(self) -> RequestShares:
        """Its steps, and which tokens of them are which request's."""
        return self._shared.get((self.routing, "requests"), lambda: RequestShares.of(self.trace))

    @property
    def demands(self) -> list[Demand] | None:
        """The routing's demand; None where it is too much to keep."""
        if self.trace.tokens * self.trace.layers * self.trace.top_k > SHARED_LOOKUPS:
            return None
        return self._shared.get((self.routing, "demand"), lambda: [compact(d) for d in iter_demand(self.trace)])

    def hints(self, spec: CacheSpec) -> list[np.ndarray] | None:
        """Ranked lookahead for a prefetcher that reads it; None for another, or where it is too much to keep.

        Ranked once for all plans of a distance that suggest about as many: a longer ranking begins with the shorter.
        """
        demands = self.demands
        if demands is None or prefetcher(spec.prefetch).reads != "lookahead":
            return None
        most = 1 << max(2, (spec.count - 1).bit_length())
        return self._shared.get(
            (self.routing, "hints", spec.distance, most),
            lambda: list(iter_hints(self.trace, replace(spec, count=most), demands)),
        )

    def played(self, setting: Setting, progress: Callable[[int], object] | None = None) -> Played:
        """The routing that a plan is replayed on; what its routing policy alters belongs to nobody else."""
        plan = setting.plan.routing
        if not plan.alters:
            return Played(self.trace, self.demands, self.hints, None)
        spec = routing_spec(plan, self.trace.manifest)
        found = rerouted(self.trace, setting.spec, spec, progress=progress)
        return Played(found.trace, None, lambda spec: None, found.altered())

    @property
    def independent(self) -> bool | None:
        """Whether the routing looks drawn anew for every token."""
        return self._shared.get((self.routing, "independent"), lambda: looks_independent(self.trace))

    def beginning(self, pieces: int = 16) -> list[Demand]:
        """The first pieces of the routing's demand."""
        return list(itertools.islice(iter_demand(self.trace), pieces))

    def bounded(self, asked: bool | None) -> bool:
        """Whether bounds are to be found."""
        return is_bounded(self.trace, asked)

    def best(self, spec: CacheSpec, *, timed: bool) -> Best:
        """Clairvoyant decisions by `spec`, which names the policy; `timed` also finds the fewest loads of decode."""
        name = (self.routing, spec.capacity, spec.size.tobytes(), spec.staging, spec.reset, spec.warm, spec.begins)
        steps, demands = self.requests.steps, self.demands

        def decided() -> Replayed:
            (done,) = run(self.trace, as_small_as_any(spec), steps=steps, demands=demands)
            return done

        fewest = None
        if timed:
            fewest = self._shared.get((*name, "fewest"), lambda: fewest_decode_loads(self.trace, spec, demands=demands))
        return Best(self._shared.get((*name, "decided"), decided), fewest)

    def least_work(self, machines: Sequence[Costs]) -> list[LeastWork]:
        """What decode steps have to compute on each machine, whatever is decided."""
        works, context = LeastWorks(machines), self.requests.steps.context
        for demand in iter_demand(self.trace) if self.demands is None else self.demands:
            works.add(demand, context[demand.first_step : demand.first_step + demand.steps])
        return works.found

    def tells_requests(self, scope: Scope) -> bool:
        """Whether a curve of this routing has room for what each request has of it."""
        experts = self.trace.num_experts * (self.trace.layers if scope == "global" else 1)
        return len(self.requests.requests) * experts <= REQUEST_COUNTS

    def curve(self, policy: str, scope: Scope) -> StackCurve:
        """Hits of `lru` or `belady` at every cache size; of each request, too, where there is room for that."""
        sharing = self.requests.sharing if self.tells_requests(scope) else None
        return self._shared.get((self.routing, policy, scope), lambda: STACK_CURVES[policy](self.trace, scope, sharing))


def compact(demand: Demand) -> Demand:
    """The same demand in arrays of its own: pieces are cut from larger ones."""
    keys = demand.keys.copy()
    recency = keys if demand.recency is demand.keys else demand.recency.copy()
    return replace(demand, keys=keys, recency=recency, tokens=demand.tokens.copy())
