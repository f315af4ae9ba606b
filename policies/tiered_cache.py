"""`TieredCache`: experts in two formats, decided by two caches side by side and a rule of which copy serves.

A visit is decided so. The rule is asked of each demanded expert, in (token, slot) order, whether its low copy will do,
given what is there before the visit. Where it will and the high copy is not there, the expert is a lookup of the low
cache, else of the high one; each cache then decides its part of the visit as an `ExpertCache` alone would. So a low
choice is served by a high copy that is there, a high copy of an expert whose low one is there is a load (an upgrade),
and a low copy that is not asked for any more leaves as the eviction policy has it.

Of `layers` MoE layers the low copies are numbered as layers `layers` to `2 * layers - 1`: the key of a low copy is
`(layers + layer) * experts + expert`, its slots follow those of the high copies. Prefetchers know the high cache alone,
and what they load ahead are high copies.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from policies.admission.base import Admission
from policies.cache import ExpertCache, allocated
from policies.cache_spec import CacheSpec, LowCopies, low_spec
from policies.events import HIT_PREFETCHED, KIND_SHIFT, PREFETCH, SLOT_MASK, SLOT_SHIFT, Events
from policies.eviction.base import EvictionPolicy
from policies.fields import Layout
from policies.precision.base import TierRule
from policies.prefetch.base import Prefetcher
from policies.registry import tier_rule
from tracekit.errors import PolicyError

TIERS = ("high", "low")
"""Of a key: that of its layer's number over the number of MoE layers."""


class Importance(NamedTuple):
    """What a rule reads of a visit, per demanded expert (engine.decisions.importance): f64 and i64 [demand]."""

    share: Sequence[float]
    rank: Sequence[int]


class TieredCache:
    """Decides, visit by visit, which copy serves each expert, and what becomes of both caches.

    Args:
        spec: what to decide by; its `low` says what the low copies are. Raises PolicyError or CapacityError.
        compiled: as `ExpertCache`; rules are always interpreted.
    """

    def __init__(self, spec: CacheSpec, low: LowCopies, *, compiled: bool = True) -> None:
        self.spec, self.low_base = spec, spec.layers * spec.experts
        self.high = ExpertCache(replace(spec, low=None), compiled=compiled)
        if self.high.eviction_class.reads not in ("nothing", "gate-weight"):
            raise PolicyError(
                f"eviction policy {spec.eviction!r} reads {self.high.eviction_class.reads}, which does not say which "
                "copy will be asked for: with precision tiers choose another"
            )
        if self.high.prefetch_class.reads not in ("nothing", "lookahead"):
            raise PolicyError(
                f"prefetcher {spec.prefetch!r} reads what is {self.high.prefetch_class.reads}, which does not say "
                "which copy will be asked for: with precision tiers choose another"
            )
        if spec.serves_otherwise or spec.domains is not None:
            raise PolicyError(
                "with precision tiers every miss is copied and kept if there is room, whatever the domain: leave out "
                "host computing, admission and domains"
            )
        self.low = ExpertCache(low_spec(spec, low), compiled=compiled)
        self.slots = self.high.slots + self.low.slots
        self.rule_class = tier_rule(low.rule)
        layout = Layout(spec.layers, spec.experts, 1, 1, np.ones(self.low_base, np.int64), np.zeros(0, np.int64))
        self._rule: TierRule = self.rule_class.interpreted(allocated(self.rule_class, layout, low.parameters))
        places = np.full(self.low_base, -1) if low.popularity is None else low.popularity
        self._popularity: list[int] = places.tolist()
        self._to_low = (self.high.slots << SLOT_SHIFT) + self.low_base

    @property
    def eviction_class(self) -> type[EvictionPolicy]:
        """Of both caches."""
        return self.high.eviction_class

    @property
    def prefetch_class(self) -> type[Prefetcher]:
        """Of the high copies."""
        return self.high.prefetch_class

    @property
    def admission_class(self) -> type[Admission]:
        """Of both caches: all are admitted."""
        return self.high.admission_class

    def warm(self, keys: tuple[int, ...]) -> None:
        """Fill the empty cache with high copies, as `ExpertCache.warm`."""
        self.high.warm(keys)

    def order_of_leaving(self) -> list[int]:
        """Of the high copies, as `ExpertCache.order_of_leaving`."""
        return self.high.order_of_leaving()

    def restart(self) -> None:
        """Start anew, as `ExpertCache.restart`."""
        self.high.restart()
        self.low.restart()

    def count_from_here(self) -> None:
        """The visits that follow are counted from 0."""
        self.high.count_from_here()
        self.low.count_from_here()

    def there(self, layer: int) -> np.ndarray:
        """Of which experts of a layer a copy is there: 0 where of none [experts]."""
        found: np.ndarray = self.high.there(layer) | self.low.there(layer)
        return found

    def held(self) -> list[tuple[int, int]]:
        """Key and slot of each copy that is there."""
        return self.high.held() + [(key + self.low_base, slot + self.high.slots) for key, slot in self.low.held()]

    def visit(
        self,
        layer: int,
        demand: Sequence[int],
        recency: Sequence[int] | None = None,
        hint: Sequence[int] = (),
        signal: Sequence[float] = (),
        importance: Importance | None = None,
    ) -> tuple[Events, list[bool]]:
        """Decide one visit, with the words of `ExpertCache.visit`; also which demanded experts their low copy serves.

        `importance` may be left out where the rule reads nothing.
        """
        lows = self._choose(layer, demand, importance)
        chosen = {expert for expert, is_low in zip(demand, lows, strict=True) if is_low}
        if not chosen and not self.low.leaving:
            high = self.high.visit(layer, demand, recency, hint, signal)
            self.low.visit(layer, ())
            return high, lows
        parts = []
        for cache, of_tier, ahead in ((self.high, False, hint), (self.low, True, ())):
            told = [value for value, is_low in zip(signal, lows, strict=True) if is_low == of_tier] if signal else ()
            of_demand, of_recency = (
                [expert for expert in order if (expert in chosen) == of_tier] for order in (demand, recency or demand)
            )
            parts.append(cache.visit(layer, of_demand, of_recency, ahead, told))
        return self._joined(*parts), lows

    def _choose(self, layer: int, demand: Sequence[int], importance: Importance | None) -> list[bool]:
        base, rule = layer * self.spec.experts, self._rule
        there, low_there = self.high.state.place, self.low.state.place
        share = [0.0] * len(demand) if importance is None else importance.share
        rank = [0] * len(demand) if importance is None else importance.rank
        found = []
        for i, expert in enumerate(demand):
            key = base + expert
            high, low = bool(there[key]), bool(low_there[key])
            found.append(rule.low(key, share[i], rank[i], self._popularity[key], high, low) and not high)
        return found

    def _joined(self, high: Events, low: Events) -> Events:
        """Hits of both, what else the demand of high copies and then of low ones brings, what is loaded ahead."""
        slots = low.code >> SLOT_SHIFT & SLOT_MASK  # all bits of it: none
        above, below = high.code, low.code + np.where(slots == SLOT_MASK, self.low_base, self._to_low)
        kinds = above >> KIND_SHIFT
        hits, others = int((kinds <= HIT_PREFETCHED).sum()), int((below >> KIND_SHIFT <= HIT_PREFETCHED).sum())
        demanded = np.flatnonzero(kinds < PREFETCH)
        rest = int(demanded[-1]) + 1 if len(demanded) else 0
        code = np.concatenate([above[:hits], below[:others], above[hits:rest], below[others:], above[rest:]])
        return replace(high, code=code, start=np.array([0, len(code)], np.int64))


AnyCache = ExpertCache | TieredCache


def cache_of(spec: CacheSpec, *, compiled: bool = True) -> AnyCache:
    """An empty cache that decides by `spec`. Raises PolicyError or CapacityError."""
    if spec.low is None:
        return ExpertCache(spec, compiled=compiled)
    return TieredCache(spec, spec.low, compiled=compiled)
