"""`ExpertCache`: the state machine that simulator and engine share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numba.core.errors import NumbaError

from policies.arguments import Arguments
from policies.cache_state import (
    BAD_SUGGESTION,
    BAD_VICTIM,
    MOST_VISITS,
    PINNED,
    RESIDENT,
    SLOT,
    VISITS,
    Batch,
    CacheState,
    allocate_slot,
)
from policies.compile_errors import explain
from policies.compiled import Decide, compiled_decide, mentions, source_files
from policies.decide import decide
from policies.events import (
    DROP,
    EVICT,
    HIT_PREFETCHED,
    MOST_SLOTS,
    EventBuffer,
    Events,
    event_buffer,
    pack,
)
from policies.fields import Layout, Policy, Value
from policies.one_visit import OneVisit
from policies.prefetch.none import NoPrefetch
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import CapacityError, PolicyError

P = TypeVar("P", bound=Policy)
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class LowCopies:
    """The low copies of experts in two formats, and the rule of which copy serves (policies.precision).

    `capacity` [groups] is in slots; `popularity` [keys] is each expert's place in its layer by a profile, if the rule
    needs one.
    """

    capacity: tuple[int, ...]
    rule: str
    parameters: Mapping[str, Value] | None = None
    popularity: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Everything that decides a cache's decisions.

    `capacity` [groups] and `size` [keys] are in the same unit: slots (size 1) or bytes. One group per layer, or one
    for all layers. `pinned` keys are resident from the start and never leave; what is left of the capacity is the
    policy's, which never hears of them. `predictor` and `estimator` are the
    directories of what was fitted for prefetching and for eviction, which others read (engine.decisions.foresight).
    `wrap`: the last layers prefetch for the first ones of the next step. `reset`: the cache starts anew with every
    request. `warm` is the trace that it is warmed with. With `low` all else is of the high copies, and capacity is in
    slots (policies.tiered_cache). Who says when a request begins, and reads that trace, is engine.decisions.
    """

    layers: int
    experts: int
    capacity: tuple[int, ...]
    size: np.ndarray
    eviction: str = "lru"
    eviction_parameters: Mapping[str, Value] | None = None
    prefetch: str = "none"
    prefetch_parameters: Mapping[str, Value] | None = None
    distance: int = 1
    count: int = 2
    staging: int = 4
    into_cache: bool = False
    pinned: tuple[int, ...] = ()
    predictor: str | None = None
    estimator: str | None = None
    reset: bool = False
    warm: str | None = None
    wrap: bool = False
    low: LowCopies | None = None


class ExpertCache:
    """Decides, visit by visit, what is a hit, what is loaded where, and what is evicted.

    Args:
        spec: what to decide by. Raises PolicyError or CapacityError when it is impossible.
        compiled: False runs the same Python uncompiled: slow, for debugging a policy.
    """

    def __init__(self, spec: CacheSpec, *, compiled: bool = True) -> None:
        eviction = eviction_policy(spec.eviction)
        suggester = prefetcher(spec.prefetch)
        if spec.low is not None:
            raise PolicyError("experts in two formats are decided by a TieredCache: this way of asking knows one")
        if eviction.reads == "next-use" and spec.into_cache and spec.prefetch != "none":
            raise PolicyError(f"{spec.eviction} knows the next use of demanded experts only: prefetch into staging")
        groups = len(spec.capacity)
        if groups not in (1, spec.layers):
            raise CapacityError(f"capacity has {groups} groups: give one, or one per layer ({spec.layers})")
        if spec.wrap and not suggester.wraps:
            raise PolicyError(
                f"prefetcher {spec.prefetch!r} knows nothing of the next step: without prefetch.wrap, or another one"
            )
        if spec.wrap and spec.distance > spec.layers:
            raise PolicyError(
                f"prefetch.distance = {spec.distance} with prefetch.wrap looks past the next step: the model has "
                f"{spec.layers} MoE layers"
            )
        # Compiled code need not ask whether an unsigned index counts from the end. Plain Python on a policy's keys may
        # subtract, where unsigned numbers would wrap around and compiled ones do not.
        self._index = np.uint32 if compiled else np.int64
        self.spec = spec
        self.slots = slots_of(spec)
        if self.slots >= MOST_SLOTS:
            raise CapacityError(f"{self.slots} slots are more than {MOST_SLOTS}, the most there can be; use fewer")
        self.eviction_class, self.prefetch_class = eviction, suggester
        self._keeps_order = mentions(eviction, "last_use")
        self._decide: Decide | None = compiled_decide(eviction, suggester) if compiled else None
        self._begun = 0  # visits before the state was new
        self._leaving = NOTHING
        self._begin()
        state = self.state
        self._visit = OneVisit(
            spec.experts,
            targets_of(spec).tolist(),
            np.dtype(self._index),
            spec.count,
            event_buffer(spec.experts, 1, len(state.resident), len(state.staged), len(state.suggestion)),
        )

    def _begin(self) -> None:
        """A cache that is empty but for what is pinned, and policies that know nothing."""
        spec, eviction, suggester = self.spec, self.eviction_class, self.prefetch_class
        keys, groups, staging = spec.layers * spec.experts, len(spec.capacity), max(spec.staging, 1)
        group_of = np.arange(spec.layers) if groups > 1 else np.zeros(spec.layers, np.int64)
        most, sizes = most_residents(spec), spec.size.astype(np.int64)
        self.state = CacheState(
            experts=spec.experts,
            group_of=group_of.astype(self._index),
            size=sizes,
            unit=int(sizes[0]) if (sizes == sizes[0]).all() else 0,
            clairvoyant=eviction.bound,
            capacity=np.array(spec.capacity, np.int64),
            used=np.zeros(groups, np.int64),
            place=np.zeros(keys, np.int32),
            seen=np.zeros(keys, np.uint32),
            last_use=np.zeros(keys if self._keeps_order else 0, np.int64),
            first=np.concatenate([[0], np.cumsum(most)]).astype(np.int64),
            resident=np.zeros(int(most.sum()) + 1, self._index),
            resident_count=np.zeros(groups, np.int64),
            position=np.zeros(keys, self._index),
            free=np.arange(self.slots, dtype=np.int64),
            ring=np.array([0, self.slots], np.int64),
            staged=np.full(staging, -1, np.int32),
            staged_count=np.zeros(1, np.int64),
            clock=np.zeros(2, np.int64),
            into_cache=spec.into_cache,
            distance=spec.distance,
            wraps=spec.wrap,
            suggestion=np.full(min(spec.count, spec.experts) if spec.prefetch != "none" else 0, -1, np.int32),
            fault=np.zeros(2, np.int64),
            missing=np.zeros(spec.experts + 1, np.int64),
        )
        layout = Layout(spec.layers, spec.experts, groups, spec.distance, self.state.size, self.state.last_use)
        for key in spec.pinned:
            self._pin(key)
        self._eviction = allocated(eviction, layout, spec.eviction_parameters)
        suggesting = allocated(suggester, layout, spec.prefetch_parameters)
        self._prefetcher = None if suggester is NoPrefetch else suggesting
        if self._decide is not None:
            prefetching = [] if self._prefetcher is None else [(suggester, suggesting)]
            self._arguments = Arguments(self.state, [(eviction, self._eviction), *prefetching])
        else:
            self._eviction = eviction.interpreted(self._eviction)
            self._prefetcher = None if suggester is NoPrefetch else suggester.interpreted(suggesting)

    def restart(self) -> None:
        """Start anew: an empty cache, and policies that know nothing.

        What was there leaves with the next visit, in order of slots, behind that visit's hits (which are of what is
        pinned). Visits go on being counted.
        """
        place = self.state.place
        keys = np.flatnonzero((place != 0) & (place & PINNED == 0))
        keys = keys[np.argsort(place[keys] >> SLOT)]
        gone = [pack(EVICT if place[key] & RESIDENT else DROP, int(key), int(place[key] >> SLOT)) for key in keys]
        self._leaving = np.concatenate([self._leaving, np.array(gone, np.int64)])
        self._begun += int(self.state.clock[VISITS])
        self._begin()

    @property
    def leaving(self) -> bool:
        """Whether the next visit's events are led by what left when the cache started anew."""
        return len(self._leaving) > 0

    def there(self, layer: int) -> np.ndarray:
        """Which experts of a layer are resident or loaded ahead: 0 where not [experts]."""
        return self.state.place[layer * self.spec.experts : (layer + 1) * self.spec.experts]

    def held(self) -> list[tuple[int, int]]:
        """Key and slot of each expert that is there, in order of keys."""
        keys = np.flatnonzero(self.state.place)
        return list(zip(keys.tolist(), (self.state.place[keys] >> SLOT).tolist(), strict=True))

    def count_from_here(self) -> None:
        """The visits that follow are counted from 0: what was decided so far was to fill the cache."""
        self._begun = -int(self.state.clock[VISITS])

    def _pin(self, key: int) -> None:
        """Give the expert a slot for good, out of the capacity that is its policy's."""
        layer, expert = divmod(key, self.spec.experts)
        group = int(self.state.group_of[layer])
        if self.state.size[key] > self.state.capacity[group]:
            raise CapacityError(
                f"pinned experts do not fit into the cache (expert {expert} of MoE layer {layer}): pin fewer, or give "
                + ("that layer" if len(self.spec.capacity) > 1 else "the cache")
                + " more capacity"
            )
        self.state.capacity[group] -= self.state.size[key]
        self.state.place[key] = allocate_slot(self.state) << SLOT | PINNED

    def run(self, batch: Batch) -> Events:
        """Decide every visit of `batch`; returns the events, in order."""
        first = self._first(len(batch.layer))
        buffer = event_buffer(
            len(batch.demand),
            len(batch.layer),
            len(self.state.resident),
            len(self.state.staged),
            len(self.state.suggestion),
        )
        if batch.demand.dtype != self._index or batch.recency.dtype != self._index:
            batch = batch._replace(demand=batch.demand.astype(self._index), recency=batch.recency.astype(self._index))
        count = self._decided(batch, buffer)
        return self._after_leaving(Events(buffer.code[:count], buffer.start, first, not self.state.clairvoyant))

    def visit(
        self,
        layer: int,
        demand: Sequence[int],
        recency: Sequence[int] | None = None,
        hint: Sequence[int] = (),
        signal: Sequence[float] = (),
    ) -> Events:
        """Decide one visit.

        Args:
            layer: the MoE layer.
            demand: distinct expert ids in (token, slot) order of first reference.
            recency: the same ids in order of last reference, if that differs.
            hint: ranked expert ids of layer `layer + distance`, for a prefetcher that reads lookahead.
            signal: what the eviction policy reads of each lookup, in order of `demand`; empty if it reads nothing.
        """
        first = self._first(1)
        batch = self._visit.batch(layer, demand, recency, hint, signal)
        count = self._decided(batch, self._visit.events)
        # Kept for long by the engine: not as a view of room for the worst case.
        start = np.array([0, count], np.int64)
        code = self._visit.events.code[:count].copy()
        return self._after_leaving(Events(code, start, first, not self.state.clairvoyant))

    def _after_leaving(self, events: Events) -> Events:
        """The events, led by what leaves since the cache started anew."""
        if len(self._leaving) and len(events.start) > 1:
            events, self._leaving = led_by(self._leaving, events), NOTHING
        return events

    def _first(self, visits: int) -> int:
        """The running number of the next visit, if so many more may be decided."""
        first = int(self.state.clock[VISITS])
        if first + visits > MOST_VISITS:
            raise PolicyError(
                f"a cache decides at most {MOST_VISITS} visits; replay the trace in parts (tracekit slice)"
            )
        return self._begun + first

    def _decided(self, batch: Batch, events: EventBuffer) -> int:
        """Decide a batch; returns how many events were written."""
        if self._decide is None:
            count = decide(self.state, self._eviction, self._prefetcher, batch, events)
        else:
            self._arguments.note(batch, events)
            try:
                count = self._decide(self._arguments.table, self._arguments.numbers)
            except NumbaError as error:
                why = explain(error, source_files((self.eviction_class, self.prefetch_class)))
                named = f"policy {self.spec.eviction!r} with {self.spec.prefetch!r}"
                raise PolicyError(f"{named} cannot be compiled: {why}") from error
        for place, name, named in (
            (BAD_VICTIM, self.spec.eviction, "a victim"),
            (BAD_SUGGESTION, self.spec.prefetch, "a suggestion"),
        ):
            if self.state.fault[place]:
                raise PolicyError(f"policy {name!r} named {named} it may not; see: tracekit policies check {name}")
        return count


def targets_of(spec: CacheSpec) -> np.ndarray:
    """The layer that is prefetched for at each layer, of the next step where the distance wraps; -1 for none: i64."""
    target = np.arange(spec.layers) + spec.distance
    past = target >= spec.layers
    return np.where(past, target - spec.layers if spec.wrap else -1, target)


def led_by(leaving: np.ndarray, events: Events) -> Events:
    """The events with others in their first visit, behind its hits."""
    hits = int(np.argmax(np.append(events.kind[: events.start[1]] > HIT_PREFETCHED, True)))
    start = events.start.copy()
    start[1:] += len(leaving)
    return replace(events, code=np.concatenate([events.code[:hits], leaving, events.code[hits:]]), start=start)


def most_residents(spec: CacheSpec) -> np.ndarray:
    """How many experts each capacity group can hold at most, as many of its smallest as fit: i64 [groups]."""
    smallest = spec.size.reshape(len(spec.capacity), -1).min(axis=1)
    members = spec.size.size // len(spec.capacity)
    most: np.ndarray = np.minimum(np.array(spec.capacity, np.int64) // np.maximum(smallest, 1), members)
    return most


def slots_of(spec: CacheSpec) -> int:
    """The physical slots of such a cache, staging buffers included, of all copies."""
    own = int(most_residents(spec).sum()) + max(spec.staging, 1)
    return own if spec.low is None else own + slots_of(low_spec(spec, spec.low))


def low_spec(spec: CacheSpec, low: LowCopies) -> CacheSpec:
    """The cache of the low copies: nothing is pinned in it, nothing prefetched."""
    return CacheSpec(
        layers=spec.layers,
        experts=spec.experts,
        capacity=low.capacity,
        size=np.ones(spec.layers * spec.experts, np.int64),
        eviction=spec.eviction,
        eviction_parameters=spec.eviction_parameters,
        staging=spec.staging,
    )


def allocated(policy: type[P], layout: Layout, parameters: Mapping[str, Value] | None) -> P:
    """A fresh state of the policy. Raises PolicyError where what it declares cannot be."""
    try:
        return policy.allocate(layout, parameters)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise PolicyError(
            f"policy {policy.name or policy.__name__!r} declares a state that cannot be: {error}"
        ) from None
