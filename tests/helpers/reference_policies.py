"""Slow, obvious eviction policies for `ReferenceCache`, written from the papers' pseudo code with lists and dicts."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from tests.helpers.reference_base import Reference
from tests.helpers.reference_ghosts import Arc, S3Fifo

if TYPE_CHECKING:
    from tests.helpers.reference_cache import ReferenceCache


class Lfu(Reference):
    """Fewest uses since it was loaded."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.uses: Counter[int] = Counter()

    def insert(self, key: int, now: int) -> None:
        self.uses[key] = 0

    def reference(self, key: int, now: int) -> None:
        self.uses[key] += 1

    def rank(self, key: int, now: int) -> float:
        return self.uses[key]


class LfuPerfect(Reference):
    """Fewest lookups ever."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.lookups: Counter[int] = Counter()

    def hit(self, key: int, now: int) -> None:
        self.lookups[key] += 1

    miss = hit

    def rank(self, key: int, now: int) -> float:
        return self.lookups[key]


class LfuAging(Reference):
    """LFU-DA, Arlitt et al. 2000: K = F + L; F uses since loaded, L the K of what was evicted last."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.uses: Counter[int] = Counter()
        self.value: dict[int, int] = {}
        self.age: Counter[int] = Counter()

    def insert(self, key: int, now: int) -> None:
        self.uses[key] = 0
        self.value[key] = self.age[self.cache.group(key)]

    def reference(self, key: int, now: int) -> None:
        self.uses[key] += 1
        self.value[key] = self.uses[key] + self.age[self.cache.group(key)]

    def evict(self, key: int, now: int) -> None:
        self.age[self.cache.group(key)] = self.value.pop(key)

    def rank(self, key: int, now: int) -> float:
        return self.value[key]


class LruK(Reference):
    """O'Neil et al. 1993, section 2.1: largest backward k-distance goes; beyond k references it is infinite.

    The k-th last lookup is that of the k-th last visit that demanded the key, wherever it was served from.
    `retain`: remember the past of what is evicted, forever (section 2.1.2). libCacheSim does not.
    """

    def __init__(self, cache: "ReferenceCache", k: int = 2, retain: bool = True) -> None:
        super().__init__(cache)
        self.k, self.retain = k, retain
        self.visits: defaultdict[int, list[int]] = defaultdict(list)

    def hit(self, key: int, now: int) -> None:
        self.visits[key].append(now)

    miss = hit

    def evict(self, key: int, now: int) -> None:
        if not self.retain:
            del self.visits[key]

    def rank(self, key: int, now: int) -> float:
        visits = self.visits[key]
        return visits[-self.k] if len(visits) >= self.k else -inf


class Fifo(Reference):
    """Loaded longest ago."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.queue: list[int] = []  # of all groups; oldest first

    def insert(self, key: int, now: int) -> None:
        self.queue.append(key)

    def evict(self, key: int, now: int) -> None:
        self.queue.remove(key)

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        return next(key for key in self.queue if key in candidates)


class Clock(Fifo):
    """Corbato 1968 as second chance: the oldest goes, unless it was hit: then it becomes the newest, its mark cleared.

    What the visit demands is passed over and keeps place and mark.
    """

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.marked: set[int] = set()

    def hit(self, key: int, now: int) -> None:
        self.marked.add(key)

    def evict(self, key: int, now: int) -> None:
        super().evict(key, now)
        self.marked.discard(key)

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        while True:
            key = next(key for key in self.queue if key in candidates)
            if key not in self.marked:
                return key
            self.marked.remove(key)
            self.queue.remove(key)
            self.queue.append(key)


class Sieve(Reference):
    """Zhang et al. 2024, algorithm 1. The hand passes over what the visit demands and leaves its mark."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.queues: defaultdict[int, list[int]] = defaultdict(list)  # oldest (the tail of the paper) first
        self.hands: dict[int, int | None] = {}
        self.visited: set[int] = set()

    def hit(self, key: int, now: int) -> None:
        self.visited.add(key)

    def insert(self, key: int, now: int) -> None:
        self.queues[self.cache.group(key)].append(key)
        self.visited.discard(key)

    def previous(self, key: int) -> int | None:
        """One step towards the head, where the newest are; None beyond it."""
        queue = self.queues[self.cache.group(key)]
        following = queue.index(key) + 1
        return queue[following] if following < len(queue) else None

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        group = self.cache.group(incoming)
        hand = self.hands.get(group)
        key = self.queues[group][0] if hand is None else hand
        while key in self.visited or key not in candidates:
            if key in candidates:
                self.visited.remove(key)
            before = self.previous(key)
            key = self.queues[group][0] if before is None else before
        self.hands[group] = self.previous(key)
        return key

    def evict(self, key: int, now: int) -> None:
        self.queues[self.cache.group(key)].remove(key)


class LeastStale(Reference):
    """Three queues, looked through in turn: done with in this pass, to come in this pass, used in this pass."""

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        self.touched: dict[int, int] = {}  # the pass that used or loaded a resident key last

    def insert(self, key: int, now: int) -> None:
        self.touched[key] = now // self.cache.layers

    reference = insert

    def evict(self, key: int, now: int) -> None:
        del self.touched[key]

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        turn, visited = divmod(now, self.cache.layers)
        layers = range(self.cache.layers)
        stale = [key for key in candidates if self.touched[key] < turn]
        fresh = [key for key in candidates if self.touched[key] == turn]
        passed = [(stale, layer) for layer in layers if layer <= visited]
        to_come = [(stale, layer) for layer in reversed(layers) if layer > visited]
        for keys, layer in [*passed, *to_come, *((fresh, layer) for layer in layers)]:
            for key in keys:
                if key // self.cache.experts == layer:
                    return key
        return None


class Random(Reference):
    """Any candidate may go. Which one is a matter of the generator: `victims` says what was drawn."""

    def __init__(self, cache: "ReferenceCache", victims: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(cache)
        self.victims = iter(victims)

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        drawn = next(self.victims)
        assert drawn in candidates
        return drawn


class Belady(Reference):
    """MIN: demanded again last."""

    def next_use(self, key: int, now: int) -> float:
        later = [visit for visit in range(now + 1, len(self.cache.future)) if key in self.cache.future[visit]]
        return later[0] if later else inf

    def rank(self, key: int, now: int) -> float:
        return -self.next_use(key, now)


class BeladyBypass(Belady):
    """MIN that may also stream the incoming expert, or evict what the visit demands once it is used."""

    may_evict_demanded = True

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        farthest = max(candidates, key=lambda key: self.next_use(key, now))
        return farthest if self.next_use(farthest, now) > self.next_use(incoming, now) else None


REFERENCES: dict[str, type[Reference]] = {
    "lru": Reference,
    "lfu": Lfu,
    "lfu-perfect": LfuPerfect,
    "lfu-aging": LfuAging,
    "lru-k": LruK,
    "fifo": Fifo,
    "clock": Clock,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "arc": Arc,
    "least-stale": LeastStale,
    "random": Random,
    "belady": Belady,
    "belady-bypass": BeladyBypass,
}
