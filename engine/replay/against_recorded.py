"""A plan's decisions held against what the traced engine's own cache held, lookup by lookup."""

import msgspec
import numpy as np

from policies.events import ADMIT, HIT_PREFETCHED, Events
from tracekit.demand import Demand, step_starts
from tracekit.errors import TraceError
from tracekit.rows import UNUSED
from tracekit.trace import Trace


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A lookup that one found resident and the other did not."""

    step: int  # the trace's own number
    layer: int  # MoE layer
    expert: int
    recorded: bool
    replayed: bool


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How many lookups were decided as the engine recorded them; `recorded_hits` are those that it found resident."""

    lookups: int
    agree: int
    recorded_hits: int
    replayed_hits: int
    first_disagreement: Disagreement | None


class AgainstRecorded:
    """Hand `compare` to `replay(on_events=...)`; `agreement` says how far both agree.

    One lookup is one distinct expert of a visit, and what was recorded of it is what its first row says
    (`Trace.recorded`). Raises TraceError when the trace does not say what its engine's cache held.
    """

    def __init__(self, trace: Trace) -> None:
        if "residency" not in trace.kinds:
            why = "batching changes it" if trace.batching is not None else "only an engine's log with residency does"
            raise TraceError(f"{trace.path} does not say what its engine's cache held: {why}")
        self._trace = trace
        self._starts = step_starts(trace.step)
        self._lookups = self._agree = self._recorded_hits = self._replayed_hits = 0
        self._first: Disagreement | None = None

    def compare(self, demand: Demand, events: Events) -> None:
        """Add the decisions on one piece of demand."""
        kind = events.kind
        looked = kind <= ADMIT
        key = events.visit[looked] * demand.experts + events.expert[looked] % demand.experts
        order = np.argsort(key)
        replayed = (kind[looked] <= HIT_PREFETCHED)[order]
        own, recorded = self._recorded(demand)
        if not np.array_equal(key[order], own):
            raise TraceError(f"{self._trace.path}: its replay looked up other experts than its rows chose")
        same = replayed == recorded
        if self._first is None and not same.all():
            at = int(same.argmin())
            visit, expert = divmod(int(own[at]), demand.experts)
            step, layer = divmod(visit, demand.layers)
            self._first = Disagreement(
                step=int(self._trace.step[self._starts[step]]),
                layer=layer,
                expert=expert,
                recorded=bool(recorded[at]),
                replayed=bool(replayed[at]),
            )
        self._lookups += len(same)
        self._agree += int(same.sum())
        self._recorded_hits += int(recorded.sum())
        self._replayed_hits += int(replayed.sum())

    @property
    def agreement(self) -> Agreement:
        return Agreement(
            lookups=self._lookups,
            agree=self._agree,
            recorded_hits=self._recorded_hits,
            replayed_hits=self._replayed_hits,
            first_disagreement=self._first,
        )

    def _recorded(self, demand: Demand) -> tuple[np.ndarray, np.ndarray]:
        """The lookups of the piece, as visit * experts + expert, ascending, i64; and whether each was resident."""
        bounds = self._starts[demand.first_step : demand.first_step + demand.steps + 1]
        first, last = int(bounds[0]), int(bounds[-1])
        experts, held = self._trace.experts_of(first, last), self._trace.recorded_of(first, last)
        assert held is not None  # the constructor has looked
        step = np.repeat(np.arange(demand.steps) + demand.first_step, np.diff(bounds))
        visit = step[:, None] * demand.layers + np.arange(demand.layers)
        used = experts != UNUSED
        key = (visit[:, :, None] * demand.experts + experts)[used]
        own, at = np.unique(key, return_index=True)  # the first row of each
        return own, held[used][at] > 0
