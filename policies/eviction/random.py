"""Random replacement, reproducible by its seed."""

import numpy as np

from policies.cache_state import CacheState
from policies.eviction.base import EvictionPolicy
from policies.fields import parameter, scalar

DRAWS = 8
"""So often any resident is drawn: one that is demanded does not count, which leaves the others' chances equal."""


class Random(EvictionPolicy):
    """Evicts any expert with equal probability; draws by xorshift64 (Marsaglia 2003)."""

    name = "random"
    summary = "uniformly random, reproducible by seed"
    source = "Belady 1966, A study of replacement algorithms for a virtual-storage computer (RAND)"

    seed = parameter(0)

    state = scalar(np.uint64)

    def victim(self, cache: CacheState, group: int, incoming: int, now: int, signal: float) -> int:
        first = cache.first[group]
        for _ in range(DRAWS):
            expert: int = cache.resident[first + draw(self) % cache.resident_count[group]]
            if cache.seen[expert] != now:
                return expert
        # Nearly all of them are demanded: draw among those that are not.
        evictable = 0
        for position in range(first, first + cache.resident_count[group]):
            if cache.seen[cache.resident[position]] != now:
                evictable += 1
        if evictable == 0:
            return -1
        chosen = draw(self) % evictable
        for position in range(first, first + cache.resident_count[group]):
            expert = cache.resident[position]
            if cache.seen[expert] != now:
                if chosen == 0:
                    return expert
                chosen -= 1
        return -1


def draw(state: "Random") -> int:
    """The next number of the generator, 0 or more and below 2^31."""
    x = np.uint64(state.state[0])
    if x == np.uint64(0):
        # Never 0, whatever the seed: the lowest bits are the constant's. Neighbouring seeds part within some rounds.
        x = np.uint64(88172645463325252) ^ (np.uint64(state.seed & 0x7FFFFFFFFFFFFFFF) << np.uint64(20))
        for _ in range(20):
            x = xorshift(x)
    x = xorshift(x)
    state.state[0] = x
    return int(x >> np.uint64(33))


def xorshift(x: np.uint64) -> np.uint64:
    """Marsaglia's step for 64 bits: 2^64 - 1 states in one cycle, which leaves out 0."""
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    return x
