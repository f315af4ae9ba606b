"""`ExpertCache`: the state machine that simulator and engine share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba.core.errors import NumbaError

from policies.cache_state import MOST_VISITS, PINNED, VISITS, Batch, CacheState, allocate_slot, insert
from policies.compile_errors import explain
from policies.compiled import Decide, compiled_decide, mentions, source_files
from policies.decide import decide
from policies.events import MOST_SLOTS, Events, event_buffer
from policies.fields import Layout, Policy, Value
from policies.prefetch.none import NoPrefetch
from policies.registry import eviction_policy, prefetcher
from tracekit.errors import CapacityError, PolicyError

P = TypeVar("P", bound=Policy)
NO_SIGNAL = np.empty(0, np.float64)


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Everything that decides a cache's decisions.

    `capacity` [groups] and `size` [keys] are in the same unit: slots (size 1) or bytes. One group per layer, or one
    for all layers. `pinned` keys are resident from the start and never evicted. `predictor` and `estimator` are the
    directories of what was fitted for prefetching and for eviction, which others read (engine.decisions.foresight).
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


class ExpertCache:
    """Decides, visit by visit, what is a hit, what is loaded where, and what is evicted.

    Args:
        spec: what to decide by. Raises PolicyError or CapacityError when it is impossible.
        compiled: False runs the same Python uncompiled: slow, for debugging a policy.
    """

    def __init__(self, spec: CacheSpec, *, compiled: bool = True) -> None:
        eviction = eviction_policy(spec.eviction)
        suggester = prefetcher(spec.prefetch)
        if eviction.reads == "next-use" and spec.into_cache and spec.prefetch != "none":
            raise PolicyError(f"{spec.eviction} knows the next use of demanded experts only: prefetch into staging")
        keys = spec.layers * spec.experts
        groups = len(spec.capacity)
        if groups not in (1, spec.layers):
            raise CapacityError(f"capacity has {groups} groups: give one, or one per layer ({spec.layers})")
        # Compiled code need not ask whether an unsigned index counts from the end. Plain Python on a policy's keys may
        # subtract, where unsigned numbers would wrap around and compiled ones do not.
        self._index = np.uint32 if compiled else np.int64
        group_of = np.arange(spec.layers) if groups > 1 else np.zeros(spec.layers, np.int64)
        members = np.bincount(group_of, minlength=groups) * spec.experts
        smallest = np.array([spec.size[np.repeat(group_of == g, spec.experts)].min() for g in range(groups)])
        capacity = np.array(spec.capacity, np.int64)
        most = np.minimum(capacity // np.maximum(smallest, 1), members)
        staging = max(spec.staging, 1)
        self.spec = spec
        self.slots = int(most.sum()) + staging
        if self.slots >= MOST_SLOTS:
            raise CapacityError(f"{self.slots} slots are more than {MOST_SLOTS}, the most there can be; use fewer")
        sizes = spec.size.astype(np.int64)
        self.state = CacheState(
            experts=spec.experts,
            group_of=group_of.astype(self._index),
            size=sizes,
            unit=int(sizes[0]) if (sizes == sizes[0]).all() else 0,
            clairvoyant=eviction.bound,
            capacity=capacity,
            used=np.zeros(groups, np.int64),
            place=np.zeros(keys, np.int32),
            seen=np.zeros(keys, np.uint32),
            last_use=np.zeros(keys if mentions(eviction, "last_use") else 0, np.int64),
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
            suggestion=np.full(min(spec.count, spec.experts) if spec.prefetch != "none" else 0, -1, np.int32),
            fault=np.zeros(2, np.int64),
            missing=np.zeros(spec.experts + 1, np.int64),
        )
        layout = Layout(spec.layers, spec.experts, groups, spec.distance, self.state.size, self.state.last_use)
        for key in spec.pinned:
            self._pin(key)
        self.eviction_class, self.prefetch_class = eviction, suggester
        self._eviction = allocated(eviction, layout, spec.eviction_parameters)
        suggesting = allocated(suggester, layout, spec.prefetch_parameters)
        self._decide: Decide = decide
        if compiled:
            self._decide = compiled_decide(eviction, suggester)
        else:
            self._eviction = eviction.interpreted(self._eviction)
            suggesting = suggester.interpreted(suggesting)
        self._prefetcher = None if suggester is NoPrefetch else suggesting
        # What one visit hands to the kernel is small: making it anew would take longer than deciding.
        self._layer = list(np.arange(spec.layers, dtype=np.int32).reshape(-1, 1))
        self._no_hint = np.full((1, max(spec.count, 1)), -1, np.int32)

    def _pin(self, key: int) -> None:
        group = int(self.state.group_of[key // self.spec.experts])
        if self.state.used[group] + self.state.size[key] > self.state.capacity[group]:
            raise CapacityError(f"pinned experts do not fit into the cache (expert key {key})")
        insert(self.state, key, group, allocate_slot(self.state))
        self.state.place[key] |= PINNED

    def run(self, batch: Batch) -> Events:
        """Decide every visit of `batch`; returns the events, in order."""
        first = int(self.state.clock[VISITS])
        if first + len(batch.layer) > MOST_VISITS:
            raise PolicyError(
                f"a cache decides at most {MOST_VISITS} visits; replay the trace in parts (tracekit slice)"
            )
        buffer = event_buffer(
            len(batch.demand),
            len(batch.layer),
            len(self.state.resident),
            len(self.state.staged),
            len(self.state.suggestion),
        )
        if batch.demand.dtype != self._index or batch.recency.dtype != self._index:
            batch = batch._replace(demand=batch.demand.astype(self._index), recency=batch.recency.astype(self._index))
        try:
            count = self._decide(self.state, self._eviction, self._prefetcher, batch, buffer)
        except NumbaError as error:
            why = explain(error, source_files((self.eviction_class, self.prefetch_class)))
            named = f"policy {self.spec.eviction!r} with {self.spec.prefetch!r}"
            raise PolicyError(f"{named} cannot be compiled: {why}") from error
        faulty = ((self.spec.eviction, "a victim"), (self.spec.prefetch, "a suggestion"))  # in the order of `fault`
        for fault, (name, named) in zip(self.state.fault, faulty, strict=True):
            if fault:
                raise PolicyError(f"policy {name!r} named {named} it may not; see: tracekit policies check {name}")
        # One visit's events are kept by the engine for long: not as a view of room for the worst case.
        code = buffer.code[:count].copy() if len(batch.layer) == 1 else buffer.code[:count]
        return Events(code, buffer.start, first, not self.state.clairvoyant)

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
        base = layer * self.spec.experts
        keys = self._keys(base, demand)
        order = keys if recency is None or recency is demand else self._keys(base, recency)
        hints = self._no_hint
        if len(hint):
            ranked = np.array(hint[: hints.shape[1]], np.int32)
            hints = hints.copy()
            hints[0, : len(ranked)] = ranked + np.int32((layer + self.spec.distance) * self.spec.experts)
        by_demand = by_recency = NO_SIGNAL
        if len(signal):
            by_demand = np.array(signal, np.float64)
            known = dict(zip(keys.tolist(), by_demand.tolist(), strict=True))
            by_recency = np.array([known[key] for key in order.tolist()])
        start = np.array([0, len(keys)], np.int64)
        return self.run(Batch(self._layer[layer], start, keys, order, by_demand, by_recency, hints))

    def _keys(self, base: int, experts: Sequence[int]) -> np.ndarray:
        return np.array([base + expert for expert in experts], self._index)


def allocated(policy: type[P], layout: Layout, parameters: Mapping[str, Value] | None) -> P:
    """A fresh state of the policy. Raises PolicyError where what it declares cannot be."""
    try:
        return policy.allocate(layout, parameters)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise PolicyError(
            f"policy {policy.name or policy.__name__!r} declares a state that cannot be: {error}"
        ) from None
