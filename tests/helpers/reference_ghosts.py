"""S3-FIFO and ARC, slow and obvious: the policies that remember what they evicted."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from tests.helpers.reference_base import Reference

if TYPE_CHECKING:
    from tests.helpers.reference_cache import ReferenceCache


class S3Fifo(Reference):
    """Yang et al. 2023, section 4 and algorithm 1, with queue sizes in whole units, as in the authors' simulator.

    An eviction from the small queue goes on until one expert has left it for the ghost, even if the main queue
    overflows by what is promoted meanwhile: the next eviction is then from the main queue. (The algorithm as printed
    evicts from the full main queue at each promotion as well, and so more than it needs room for.) Whether the ghost
    remembers an expert is asked before its own loading pushes others into the ghost.

    `fill_main_first`: until the first eviction, what finds the small queue full enters the main queue. So does the
    authors' simulator since December 2024 (libCacheSim, S3FIFO.c); the paper does not.
    """

    def __init__(
        self,
        cache: "ReferenceCache",
        small_share: float = 0.1,
        ghost_share: float = 0.9,
        move_at: int = 2,
        fill_main_first: bool = False,
    ) -> None:
        super().__init__(cache)
        self.small_share, self.ghost_share, self.move_at = small_share, ghost_share, move_at
        self.small: defaultdict[int, list[int]] = defaultdict(list)  # oldest first, as all queues here
        self.main: defaultdict[int, list[int]] = defaultdict(list)
        self.ghost: defaultdict[int, list[int]] = defaultdict(list)
        self.frequency: Counter[int] = Counter()
        self.filling = fill_main_first

    def hit(self, key: int, now: int) -> None:
        self.frequency[key] = min(self.frequency[key] + 1, 3)

    def insert(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        self.frequency[key] = 0
        if key in self.ghost[group]:
            self.ghost[group].remove(key)
            self.main[group].append(key)
        elif self.filling and self.volume(self.small[group]) >= self.limit(group):
            self.main[group].append(key)
        else:
            self.small[group].append(key)

    def volume(self, keys: list[int]) -> int:
        return sum(self.cache.size[key] for key in keys)

    def limit(self, group: int) -> int:
        return int(self.small_share * self.cache.capacity[group])

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        group = self.cache.group(incoming)
        self.filling = False
        self.incoming = incoming
        if self.volume(self.small[group]) >= self.limit(group):
            found = self.from_small(group, candidates)
            return self.from_main(group, candidates) if found is None else found
        found = self.from_main(group, candidates)
        if found is None:
            found = self.from_small(group, candidates)
        return self.from_main(group, candidates) if found is None else found  # what the small queue has promoted

    def from_small(self, group: int, candidates: list[int]) -> int | None:
        for key in [key for key in self.small[group] if key in candidates]:
            if self.frequency[key] < self.move_at:
                return key
            self.small[group].remove(key)
            self.main[group].append(key)
            self.frequency[key] = 0
        return None

    def from_main(self, group: int, candidates: list[int]) -> int | None:
        while waiting := [key for key in self.main[group] if key in candidates]:
            key = waiting[0]
            if self.frequency[key] == 0:
                return key
            self.main[group].remove(key)
            self.main[group].append(key)
            self.frequency[key] -= 1
        return None

    def evict(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        if key in self.main[group]:
            self.main[group].remove(key)
            return
        self.small[group].remove(key)
        ghost = self.ghost[group]
        ghost.append(key)
        # The ghost that is returning takes no room any more, and must not be forgotten just now.
        others = [other for other in ghost if other != self.incoming]
        while self.volume(others) > int(self.ghost_share * self.cache.capacity[group]):
            ghost.remove(others.pop(0))


class Arc(Reference):
    """Megiddo & Modha 2003, figure 4, for lists that count experts; c is the capacity in experts of the incoming size.

    If the visit demands all of the list from which REPLACE takes, the other list gives.
    """

    def __init__(self, cache: "ReferenceCache") -> None:
        super().__init__(cache)
        # Of each group, least recent first.
        self.t1: defaultdict[int, list[int]] = defaultdict(list)
        self.t2: defaultdict[int, list[int]] = defaultdict(list)
        self.b1: defaultdict[int, list[int]] = defaultdict(list)
        self.b2: defaultdict[int, list[int]] = defaultdict(list)
        self.p: defaultdict[int, float] = defaultdict(float)
        self.adapted: dict[int, int] = {}
        self.remember = True

    def hit(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        (self.t1 if key in self.t1[group] else self.t2)[group].remove(key)
        self.t2[group].append(key)

    def reference(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        of_key = (self.t1 if key in self.t1[group] else self.t2)[group]
        of_key.remove(key)
        of_key.append(key)

    def insert(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        for ghosts in (self.b1[group], self.b2[group]):
            if key in ghosts:
                ghosts.remove(key)
                self.t2[group].append(key)
                return
        self.t1[group].append(key)

    def evict(self, key: int, now: int) -> None:
        group = self.cache.group(key)
        if key in self.t2[group]:
            self.t2[group].remove(key)
            self.b2[group].append(key)
        else:
            self.t1[group].remove(key)
            if self.remember:
                self.b1[group].append(key)

    def victim(self, incoming: int, candidates: list[int], now: int) -> int | None:
        group = self.cache.group(incoming)
        t1, t2, b1, b2 = self.t1[group], self.t2[group], self.b1[group], self.b2[group]
        c = max(1, self.cache.capacity[group] // self.cache.size[incoming])
        self.remember = True
        first_victim = self.adapted.get(incoming) != now  # a large expert may need several
        self.adapted[incoming] = now
        if incoming in b1:  # case II
            if first_victim:
                self.p[group] = min(c, self.p[group] + max(1, len(b2) / len(b1)))
        elif incoming in b2:  # case III
            if first_victim:
                self.p[group] = max(0, self.p[group] - max(1, len(b1) / len(b2)))
        else:  # case IV
            if first_victim and len(t1) + len(b1) >= c:  # case A
                while b1 and len(t1) + len(b1) >= c:
                    b1.pop(0)
            elif first_victim:  # case B
                while b2 and len(t1) + len(t2) + len(b1) + len(b2) >= 2 * c:
                    b2.pop(0)
            if len(t1) >= c:
                discarded = [key for key in t1 if key in candidates]
                if discarded:
                    self.remember = False
                    return discarded[0]
        p = self.p[group]
        from_t1 = bool(t1) and (len(t1) > p or (incoming in b2 and len(t1) == p))
        order = [*t1, *t2] if from_t1 else [*t2, *t1]
        return next(key for key in order if key in candidates)
