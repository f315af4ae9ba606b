"""`ExpertCache`: the state machine that simulator and engine share."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numba.core.errors import NumbaError

from policies.admission.always import AlwaysAdmit
from policies.admission.base import Admission
from policies.arguments import Arguments
from policies.cache_spec import NOTHING, CacheSpec, most_residents, reserved, slots_of, targets_of
from policies.cache_state import (
    BAD_SUGGESTION,
    BAD_VICTIM,
    FREE_COUNT,
    MOST_VISITS,
    PINNED,
    RESIDENT,
    SLOT,
    VISITS,
    Batch,
    CacheState,
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
from policies.eviction.base import EvictionPolicy
from policies.fields import Layout, Policy, Value
from policies.misses import WHERE, misses_of
from policies.one_visit import OneVisit
from policies.prefetch.none import NoPrefetch
from policies.registry import admission_policy, eviction_policy, prefetcher
from policies.switching import (
    Kept,
    behind,
    in_plain_numbers,
    order_of_leaving,
    switched,
    visits,
    warmed,
    written_back,
)
from tracekit.errors import CapacityError, PolicyError

P = TypeVar("P", bound=Policy)


class ExpertCache:
    """Decides, visit by visit, what is a hit, what is loaded where, and what is evicted.

    Args:
        spec: what to decide by. Raises PolicyError or CapacityError when it is impossible.
        compiled: False runs the same Python uncompiled: slow, for debugging a policy.
    """

    def __init__(self, spec: CacheSpec, *, compiled: bool = True) -> None:
        eviction = eviction_policy(spec.eviction)
        suggester, admission = prefetcher(spec.prefetch), admission_policy(spec.admission)
        if spec.low is not None:
            raise PolicyError("experts in two formats are decided by a TieredCache: this way of asking knows one")
        if eviction.reads == "next-use" and spec.into_cache and spec.prefetch != "none":
            raise PolicyError(f"{spec.eviction} knows the next use of demanded experts only: prefetch into staging")
        if eviction.reads == "next-use" and spec.domains is not None and any(one.warm for one in spec.domains.kept):
            raise PolicyError(f"{spec.eviction} knows the next use of demanded experts only: warm no domain's")
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
        if spec.where not in WHERE:
            raise PolicyError(f"a miss is served {' or '.join(WHERE)}, not {spec.where!r}")
        if spec.where == "split" and spec.copied is None:
            raise PolicyError("where misses are split, `copied` says how many are copied")
        if spec.where == "auto" and len(spec.most_tokens) != spec.layers:
            raise PolicyError("where a miss is served by its tokens, most_tokens has a number for each layer")
        # Compiled code need not ask whether an unsigned index counts from the end. Plain Python on a policy's keys may
        # subtract, where unsigned numbers would wrap around and compiled ones do not.
        self._index = np.uint32 if compiled else np.int64
        self.spec = spec
        self.slots = slots_of(spec)
        if self.slots >= MOST_SLOTS:
            raise CapacityError(f"{self.slots} slots are more than {MOST_SLOTS}, the most there can be; use fewer")
        self.eviction_class, self.prefetch_class, self.admission_class = eviction, suggester, admission
        asked = (eviction,) if admission is AlwaysAdmit else (eviction, admission)
        self._keeps_order = any(mentions(policy, "last_use") for policy in asked)
        self._decide: Decide | None = None
        if compiled:
            self._decide = compiled_decide(eviction, suggester, admission, misses=spec.serves_otherwise)
        self._begun = 0  # visits before the state was new
        self._leaving = NOTHING
        self._coming: Kept | None = None
        self._changed = NOTHING
        self._reserved = reserved(spec)
        self._begin({})
        state = self.state
        self._visit = OneVisit(
            spec.experts,
            targets_of(spec).tolist(),
            np.dtype(self._index),
            spec.count,
            event_buffer(spec.experts, 1, len(state.resident), len(state.staged), len(state.suggestion)),
        )

    def _begin(self, pinned: Mapping[int, int]) -> None:
        """A cache that is empty but for what is pinned, and policies that know nothing.

        `pinned`: the place of each key where some are pinned already; those of the spec get the first slots.
        """
        spec, eviction, suggester, admission = self.spec, self.eviction_class, self.prefetch_class, self.admission_class
        keys, groups, staging = spec.layers * spec.experts, len(spec.capacity), max(spec.staging, 1)
        group_of = np.arange(spec.layers) if groups > 1 else np.zeros(spec.layers, np.int64)
        most, sizes = most_residents(spec), spec.size.astype(np.int64)
        self.state = CacheState(
            experts=spec.experts,
            group_of=group_of.astype(self._index),
            size=sizes,
            unit=int(sizes[0]) if (sizes == sizes[0]).all() else 0,
            clairvoyant=eviction.bound,
            capacity=np.array(spec.capacity, np.int64) - self._reserved,
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
        pinned = pinned or {key: slot << SLOT | PINNED for slot, key in enumerate(spec.pinned)}
        for key, place in pinned.items():
            self.state.place[key] = place
        if pinned:
            free = np.setdiff1d(self.state.free, [place >> SLOT for place in pinned.values()])
            self.state.free[: len(free)], self.state.ring[FREE_COUNT] = free, len(free)
        self._eviction = allocated(eviction, layout, spec.eviction_parameters)
        suggesting = allocated(suggester, layout, spec.prefetch_parameters)
        admitting = allocated(admission, layout, spec.admission_parameters)
        self._prefetcher = None if suggester is NoPrefetch else suggesting
        self._admission = None if admission is AlwaysAdmit else admitting
        self._misses = None
        if spec.serves_otherwise:
            limits = (spec.copied, spec.most_tokens, spec.per_step, spec.even)
            self._misses = misses_of(spec.where, *limits, spec.layers, spec.experts)
        if self._decide is not None:
            prefetching = [] if self._prefetcher is None else [(suggester, suggesting)]
            asking = [] if self._admission is None else [(admission, admitting)]
            self._arguments = Arguments(self.state, self._misses, [(eviction, self._eviction), *prefetching, *asking])
        else:
            self._eviction = eviction.interpreted(self._eviction)
            self._prefetcher = None if suggester is NoPrefetch else suggester.interpreted(suggesting)
            self._admission = None if admission is AlwaysAdmit else admission.interpreted(admitting)

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
        self._begin({key: int(place[key]) for key in np.flatnonzero(place & PINNED).tolist()})

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

    def switch(self, kept: Kept) -> None:
        """Behind the next visit, have the cache keep this (policies.switching): what it loads ahead for that, and what
        leaves, is in that visit's events."""
        self._coming = kept

    def changed(self) -> np.ndarray:
        """What switching has changed since this was asked last, as packed events: i64."""
        found, self._changed = self._changed, NOTHING
        return found

    def warm(self, keys: tuple[int, ...]) -> None:
        """Fill the empty cache, the last of the `keys` being the most recent (policies.switching)."""
        plain = in_plain_numbers(self.state)
        warmed(plain, self._interpreted(), keys)
        written_back(plain, self.state)

    def order_of_leaving(self) -> list[int]:
        """The keys of the moving part, group by group in the order in which the policy would let them go."""
        return order_of_leaving(*copy.deepcopy((in_plain_numbers(self.state), self._interpreted())))

    def _asked(self) -> Admission | None:
        """The admission policy at work, in plain Python; None where all are admitted."""
        own = self._admission
        return own if self._decide is None or own is None else self.admission_class.interpreted(own)

    def _interpreted(self) -> EvictionPolicy:
        """The eviction policy at work, in plain Python."""
        own = self._eviction
        return own if self._decide is None else self.eviction_class.interpreted(own)

    def run(self, batch: Batch) -> Events:
        """Decide every visit of `batch`; returns the events, in order."""
        if self._coming is not None and len(batch.layer) > 1:
            return Events.join([self.run(visits(batch, 0, 1)), self.run(visits(batch, 1, len(batch.layer)))])
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
        tokens: Sequence[int] = (),
        gate: Sequence[float] = (),
    ) -> Events:
        """Decide one visit.

        Args:
            layer: the MoE layer.
            demand: distinct expert ids in (token, slot) order of first reference.
            recency: the same ids in order of last reference, if that differs.
            hint: ranked expert ids of layer `layer + distance`, for a prefetcher that reads lookahead.
            signal: what the eviction policy reads of each lookup, in order of `demand`; empty if it reads nothing.
            tokens: how many tokens chose each, where `CacheSpec.counts_tokens`.
            gate: the gate weights they gave it, added up, where the admission policy reads them.
        """
        first = self._first(1)
        batch = self._visit.batch(layer, demand, recency, hint, signal, tokens, gate)
        count = self._decided(batch, self._visit.events)
        # Kept for long by the engine: not as a view of room for the worst case.
        start = np.array([0, count], np.int64)
        code = self._visit.events.code[:count].copy()
        return self._after_leaving(Events(code, start, first, not self.state.clairvoyant))

    def _after_leaving(self, events: Events) -> Events:
        """The events, led by what leaves since the cache started anew, and what another domain changes behind them."""
        if len(events.start) < 2:
            return events
        if len(self._leaving):
            events, self._leaving = led_by(self._leaving, events), NOTHING
        if self._coming is not None:
            plain = in_plain_numbers(self.state)
            codes, done = switched(plain, self._interpreted(), self._asked(), self._coming)
            written_back(plain, self.state)
            self._coming = None if done else replace(self._coming, warm=())
            self._changed = np.append(self._changed, np.array(codes, np.int64))
            events = behind(np.array(codes, np.int64), events)
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
            asked = (self._prefetcher, self._misses, self._admission)
            count = decide(self.state, self._eviction, *asked, batch, events)
        else:
            self._arguments.note(batch, events)
            try:
                count = self._decide(self._arguments.table, self._arguments.numbers)
            except NumbaError as error:
                policies = (self.eviction_class, self.prefetch_class, self.admission_class)
                why = explain(error, source_files(policies))
                named = f"policy {self.spec.eviction!r} with {self.spec.prefetch!r}"
                named += "" if self._admission is None else f" and {self.spec.admission!r}"
                raise PolicyError(f"{named} cannot be compiled: {why}") from error
        for place, name, named in (
            (BAD_VICTIM, self.spec.eviction, "a victim"),
            (BAD_SUGGESTION, self.spec.prefetch, "a suggestion"),
        ):
            if self.state.fault[place]:
                raise PolicyError(f"policy {name!r} named {named} it may not; see: tracekit policies check {name}")
        return count


def led_by(leaving: np.ndarray, events: Events) -> Events:
    """The events with others in their first visit, behind its hits."""
    hits = int(np.argmax(np.append(events.kind[: events.start[1]] > HIT_PREFETCHED, True)))
    start = events.start.copy()
    start[1:] += len(leaving)
    return replace(events, code=np.concatenate([events.code[:hits], leaving, events.code[hits:]]), start=start)


def allocated(policy: type[P], layout: Layout, parameters: Mapping[str, Value] | None) -> P:
    """A fresh state of the policy. Raises PolicyError where what it declares cannot be."""
    try:
        return policy.allocate(layout, parameters)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise PolicyError(
            f"policy {policy.name or policy.__name__!r} declares a state that cannot be: {error}"
        ) from None
