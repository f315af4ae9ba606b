"""A slow, obvious cache of experts, written from the rules alone: what `policies` decides must equal it.

Everything is a list, a set or a dict; recency is a list, the future is scanned. Rules: docs/design.md. Which expert
is evicted is the business of `reference_policies`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, isnan
from typing import Any

from tests.helpers.reference_misses import ReferenceMisses
from tests.helpers.reference_policies import REFERENCES

HIT, HIT_PINNED, HIT_PREFETCHED, HOST, LOAD, BYPASS, ADMIT, PREFETCH, EVICT, DROP = range(10)

# What the tokens of one visit chose, in (token, slot) order, repetitions included.
References = Sequence[int]
Event = tuple[int, int, int]  # visit, kind, key


class ReferenceCache:
    """Decides visit by visit. Keys are layer * experts + expert.

    Args:
        capacity: one amount for everything, or one per layer, in the unit of `size`.
        size: of each key.
        policy: a name in `REFERENCES`; `parameters` are that policy's own.
        future: for the bounds, the demanded keys of every visit of the trace.
        pinned: keys that are there for ever. The policy is never told of them, and has what is left of the capacity.
        reserved: what of each capacity is not the policy's, where other keys may be pinned later (`switch`).
        misses: where a miss is computed and whether it may be kept; None: each is copied, and kept if there is room.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        capacity: Sequence[int],
        size: Sequence[int],
        policy: str,
        *,
        staging: int = 1,
        into_cache: bool = False,
        distance: int = 1,
        count: int = 0,
        wrap: bool = False,
        future: Sequence[Collection[int]] = (),
        parameters: Mapping[str, Any] | None = None,
        pinned: Collection[int] = (),
        reserved: Sequence[int] | None = None,
        misses: ReferenceMisses | None = None,
    ) -> None:
        self.layers, self.experts = layers, experts
        self.capacity, self.size = list(capacity), list(size)
        self.staging, self.into_cache, self.distance, self.count = staging, into_cache, distance, count
        self.future, self.wrap, self.pinned = future, wrap, set(pinned)
        self.kept: list[int] = []  # resident keys, least recently used first
        self.staged: list[int] = []  # oldest first
        self.fresh: set[int] = set()  # loaded ahead, not demanded since
        self.slots = sum(self.most_in(group) for group in range(len(self.capacity))) + staging - len(self.pinned)
        for key in self.pinned if reserved is None else ():
            self.capacity[self.group(key)] -= self.size[key]
        for group, amount in enumerate(reserved or ()):
            self.capacity[group] -= amount
        self.by_slot: Callable[[int], int] = lambda key: key  # it knows no slots: who compares may say in which order
        self.policy = REFERENCES[policy](self, **(parameters or {}))
        self.misses = misses or ReferenceMisses(layers)
        self.visits = 0
        self.vanished: list[set[int]] = []  # by visit: staged experts that were used but found no room to stay

    def group(self, key: int) -> int:
        return key // self.experts if len(self.capacity) > 1 else 0

    def members(self, group: int) -> list[int]:
        return [key for key in range(self.layers * self.experts) if self.group(key) == group]

    def most_in(self, group: int) -> int:
        """How many experts a group can hold at most: as many of its smallest as fit."""
        smallest = min(self.size[key] for key in self.members(group))
        return min(self.capacity[group] // smallest, len(self.members(group)))

    def visit(
        self, layer: int, references: References, hint: Sequence[int] = (), weights: Sequence[float] = ()
    ) -> list[Event]:
        """`hint`: ranked experts of layer `layer + distance`, best first; with `wrap` the layer after the last is 0.
        `weights`: what the gate gave each of the references, if anybody asks.
        """
        now = self.visits
        self.visits += 1
        self.vanished.append(set())
        events: list[Event] = []
        chosen = [layer * self.experts + expert for expert in references]
        demand = list(dict.fromkeys(chosen))
        by_last_reference = list(dict.fromkeys(reversed(chosen)))[::-1]

        missing = [key for key in demand if key not in self.kept and key not in self.staged and key not in self.pinned]
        for key in demand:
            if key in self.pinned:
                events.append((now, HIT_PREFETCHED if key in self.fresh else HIT_PINNED, key))
                self.fresh.discard(key)
                continue
            if key in self.kept:
                self.policy.hit(key, now)
            else:
                self.policy.miss(key, now)
            if key not in missing:
                events.append((now, HIT_PREFETCHED if key in self.fresh else HIT, key))
                self.fresh.discard(key)

        for key in list(self.staged):
            if key // self.experts == layer and key not in demand:
                self.drop(key, now, events)
        for key in demand:
            if key in self.staged:
                fits = self.make_room(key, demand, now, events)
                self.staged.remove(key)
                if fits:
                    self.keep(key, now)
                else:
                    self.vanished[now].add(key)

        given = dict.fromkeys(demand, 0.0)
        for key, weight in zip(chosen, weights, strict=False):
            given[key] += weight
        self.misses.begin(layer)
        hosted = self.misses.hosted(layer, missing, Counter(chosen))
        for key in missing:
            share = given[key] / sum(given.values()) if weights else 0.0
            kept = self.misses.wants(key, key in hosted, share) and self.misses.left > 0
            if kept and self.make_room(key, demand, now, events):
                self.misses.left -= 1
                events.append((now, ADMIT if key in hosted else LOAD, key))
                self.keep(key, now)
            elif key in hosted:
                events.append((now, HOST, key))
            else:
                # A bypassing expert passes through a free slot; if prefetches hold them all, the oldest goes.
                if len(self.kept) + len(self.staged) == self.slots:
                    self.drop(next(key for key in self.staged if key not in demand), now, events)
                events.append((now, BYPASS, key))

        for key in by_last_reference:
            if key in self.kept:
                self.kept.remove(key)
                self.kept.append(key)
                self.policy.reference(key, now)

        if layer + self.distance < self.layers or self.wrap:
            for expert in hint[: self.count]:
                self.prefetch((layer + self.distance) % self.layers * self.experts + expert, demand, now, events)
        return events

    def switch(self, pinned: Sequence[int], warm: Sequence[int], demand: Sequence[int]) -> tuple[list[Event], bool]:
        """Behind a visit with this demand (keys): what another domain keeps; `warm` with the most wanted last. And
        whether all is done: what the visit used and could not keep is not loaded yet."""
        now, events, left = self.visits - 1, [], set()
        self.slots += len(self.pinned) - len(pinned)
        there = {*self.kept, *self.staged, *self.pinned}
        for key in sorted(self.pinned - set(pinned), key=self.by_slot):
            if key in warm and self.used(self.group(key)) + self.size[key] <= self.capacity[self.group(key)]:
                self.keep(key, now)
            else:
                self.fresh.discard(key)
                left.add(key)
                events.append((now, EVICT, key))
        late = [key for key in pinned if key in demand and key not in there]
        for key in pinned:
            if key in self.kept:
                self.kept.remove(key)
                self.policy.evict(key, now)
            elif key in self.staged:
                self.staged.remove(key)
            elif key not in self.pinned and key not in late:
                self.fresh.add(key)
                events.append((now, PREFETCH, key))
        self.slots += len(late)
        self.pinned = set(pinned) - set(late)
        wanted: list[int] = []
        for key in reversed(warm):
            beside = sum(self.size[other] for other in wanted if self.group(other) == self.group(key))
            if key not in self.pinned and beside + self.size[key] <= self.capacity[self.group(key)]:
                wanted.append(key)
        stays = [*demand, *(key for key in wanted if key in self.kept)]
        for key in reversed(wanted):
            if key in self.kept or key in self.staged or key in left or key in demand:
                continue
            if self.make_room(key, stays, now, events):
                self.keep(key, now)
                self.fresh.add(key)
                stays.append(key)
                events.append((now, PREFETCH, key))
        return events, not late

    def prefetch(self, key: int, demand: list[int], now: int, events: list[Event]) -> None:
        if key in self.kept or key in self.staged or key in self.pinned:
            return
        if self.into_cache:
            if not self.make_room(key, demand, now, events):
                return
            self.keep(key, now)
        elif len(self.staged) < self.staging:
            self.staged.append(key)
        else:
            return
        self.fresh.add(key)
        events.append((now, PREFETCH, key))

    def keep(self, key: int, now: int) -> None:
        self.kept.append(key)
        self.policy.insert(key, now)

    def drop(self, key: int, now: int, events: list[Event]) -> None:
        self.staged.remove(key)
        self.fresh.discard(key)
        events.append((now, DROP, key))

    def make_room(self, key: int, demand: list[int], now: int, events: list[Event]) -> bool:
        group = self.group(key)
        of_group = [other for other in self.kept if self.group(other) == group]
        protected = [other for other in of_group if other in demand and not self.policy.may_evict_demanded]
        # Nothing is evicted in vain: if the key does not fit beside what the visit itself demands, nobody leaves.
        if sum(self.size[other] for other in protected) + self.size[key] > self.capacity[group]:
            return False
        while self.used(group) + self.size[key] > self.capacity[group]:
            candidates = [other for other in self.kept if self.group(other) == group and other not in protected]
            victim = self.policy.victim(key, candidates, now)
            if victim is None:
                return False
            self.kept.remove(victim)
            self.fresh.discard(victim)
            self.policy.evict(victim, now)
            self.misses.left_the_cache(victim)
            events.append((now, EVICT, victim))
        return True

    def used(self, group: int) -> int:
        return sum(self.size[key] for key in self.kept if self.group(key) == group)


def rank_by_votes(rows: Sequence[Sequence[float]], top_k: int, count: int) -> list[int]:
    """Experts by how many tokens (`rows`) have them in their top-k, then by largest logit, then by id."""
    votes: Counter[int] = Counter()
    best: dict[int, float] = {}
    for row in rows:
        usable = [expert for expert in range(len(row)) if not isnan(row[expert])]
        for expert in sorted(usable, key=lambda expert: (-row[expert], expert))[:top_k]:
            votes[expert] += 1
            best[expert] = max(best.get(expert, -inf), row[expert])
    return sorted(votes, key=lambda expert: (-votes[expert], -best[expert], expert))[:count]
