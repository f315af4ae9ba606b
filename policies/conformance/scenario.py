"""Small routings to try a policy on, from simple to involved, and how to make a failing one smaller."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from policies.cache_spec import CacheSpec
from policies.cache_state import Batch

SCENARIOS = 48
SHRINKING = 400  # runs at most to make one example smaller


@dataclass(frozen=True, slots=True)
class Visit:
    """One step at one layer; experts are numbered within the layer.

    `signal` holds a number per demanded expert, for policies that read one; `hint` ranked experts of the target layer.
    """

    step: int
    layer: int
    demand: tuple[int, ...]
    recency: tuple[int, ...]
    signal: tuple[float, ...]
    hint: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cache and the visits that it serves: whole steps, every layer in turn."""

    layers: int
    experts: int
    capacity: tuple[int, ...]
    size: tuple[int, ...]
    distance: int
    count: int
    staging: int
    into_cache: bool
    visits: tuple[Visit, ...]
    wrap: bool = False
    pinned: tuple[int, ...] = ()

    def spec(self, eviction: str, prefetch: str) -> CacheSpec:
        """The cache, deciding by these policies."""
        return CacheSpec(
            layers=self.layers,
            experts=self.experts,
            capacity=self.capacity,
            size=np.array(self.size, np.int64),
            eviction=eviction,
            prefetch=prefetch,
            distance=self.distance,
            count=self.count,
            staging=self.staging,
            into_cache=self.into_cache,
            wrap=self.wrap,
            pinned=self.pinned,
        )

    def batch(self, signal: str, hint: str) -> Batch:
        """The visits as the kernel takes them, for policies that read `signal` and `hint`."""
        keys = [[v.layer * self.experts + e for e in v.demand] for v in self.visits]
        recency = [[v.layer * self.experts + e for e in v.recency] for v in self.visits]
        values = [dict(zip(k, v.signal, strict=True)) for k, v in zip(keys, self.visits, strict=True)]
        if signal == "next-use":
            values = next_uses(keys)
        hints = np.full((len(keys), 0 if hint == "nothing" else self.count), -1, np.int32)
        if hint != "nothing":
            for index, visit in enumerate(self.visits):
                target = visit.layer + self.distance
                reached = target < self.layers or (self.wrap and index + self.distance < len(self.visits))
                if reached and (hint == "future" or target < self.layers):
                    known = self.visits[index + self.distance].demand if hint == "future" else visit.hint
                    ranked = known[: self.count]
                    target %= self.layers
                    hints[index, : len(ranked)] = [target * self.experts + e for e in ranked]
        read = signal != "nothing"
        return Batch(
            layer=np.array([v.layer for v in self.visits], np.int32),
            start=np.cumsum([0, *map(len, keys)], dtype=np.int64),
            demand=np.array([key for ks in keys for key in ks], np.uint32),
            recency=np.array([key for ks in recency for key in ks], np.uint32),
            signal=np.array([v[k] for ks, v in zip(keys, values, strict=True) for k in ks if read], np.float64),
            signal_recency=np.array(
                [v[k] for ks, v in zip(recency, values, strict=True) for k in ks if read], np.float64
            ),
            hint=hints,
        )

    @property
    def _prefetches(self) -> bool:
        return self.wrap or self.layers > self.distance

    def past_the_end(self) -> "Scenario":
        """The same with prefetching from the last layers for the next step's first ones."""
        return replace(self, wrap=True, distance=min(self.distance, self.layers))

    def beside_pinned(self, seed: int) -> "Scenario":
        """The same with some experts in the cache for good: any that fit."""
        left, pinned = list(self.capacity), []
        for key in np.random.default_rng([20260103, seed]).permutation(len(self.size)).tolist()[::2]:
            group = key // self.experts if len(left) > 1 else 0
            if self.size[key] <= left[group]:
                left[group] -= self.size[key]
                pinned.append(key)
        return replace(self, pinned=tuple(sorted(pinned)))

    def __str__(self) -> str:
        """The scenario in words, short enough for a message."""
        unit = "slot(s)" if set(self.size) == {1} else f"bytes of experts that take {spaced(self.size)}"
        shown = [v for v in self.visits if v.demand or v.hint]
        visits = [
            f"step {v.step} layer {v.layer}: {spaced(v.demand) or 'nothing'}"
            + (f" (gate says {spaced(v.hint)} next)" if v.hint else "")
            for v in shown[:12]
        ]
        more = f", and {len(shown) - 12} more visits" if len(shown) > 12 else ""
        layers = "1 layer" if self.layers == 1 else f"{self.layers} layers"
        return (
            f"{layers} of {self.experts} experts, {spaced(self.capacity)} {unit}"
            + (f", experts {spaced(self.pinned)} pinned" if self.pinned else "")
            + (f", prefetching {self.count} for {self.distance} ahead" if self._prefetches else "")
            + (", past the last layer too" if self.wrap else "")
            + (" into the cache" if self._prefetches and self.into_cache else "")
            + f"; {', '.join(visits)}{more}"
        )


def spaced(numbers: tuple[int, ...]) -> str:
    """`0 3 1`."""
    return " ".join(map(str, numbers))


def next_uses(keys: list[list[int]]) -> list[dict[int, float]]:
    """The visit at which each demanded expert is demanded again; infinity if never."""
    upcoming: dict[int, float] = {}
    values: list[dict[int, float]] = []
    for index in range(len(keys) - 1, -1, -1):
        values.append({key: upcoming.get(key, np.inf) for key in keys[index]})
        upcoming.update(dict.fromkeys(keys[index], float(index)))
    return values[::-1]


def scenarios(number: int = SCENARIOS) -> Iterator[Scenario]:
    """The routings every policy is tried on: the same ones each time, larger and less regular as they go."""
    for seed in range(number):
        rng = np.random.default_rng([20260101, seed])
        simple = seed < 8
        layers = 1 if simple else int(rng.integers(1, 4))
        experts = 3 if simple else int(rng.integers(2, 8))
        steps = 3 + seed // 2 if seed < number - 4 else 60
        keys = layers * experts
        by_bytes = not simple and seed % 3 == 2
        size = tuple(int(n) for n in (rng.integers(1, 6, keys) if by_bytes else np.ones(keys, np.int64)))
        groups = [size[g * experts : (g + 1) * experts] for g in range(layers)] if seed % 2 else [size]
        capacity = tuple(int(rng.integers(1 if simple else 0, sum(group) + 1)) for group in groups)
        scenario = Scenario(
            layers=layers,
            experts=experts,
            capacity=capacity,
            size=size,
            distance=int(rng.integers(1, 3)),
            count=int(rng.integers(1, experts + 1)),
            staging=int(rng.integers(1, 4)),
            into_cache=not simple and bool(rng.random() < 0.5),
            visits=(),
        )
        yield replace(scenario, visits=draw_visits(rng, scenario, steps, 1 if simple else experts))


def draw_visits(rng: np.random.Generator, scenario: Scenario, steps: int, most: int) -> tuple[Visit, ...]:
    """Skewed random demand of up to `most` experts per visit."""
    layers, experts = scenario.layers, scenario.experts
    bias = rng.gumbel(size=(layers, experts)) * rng.choice([0.0, 1.5])
    visits = []
    for step in range(steps):
        for layer in range(layers):
            ranked = np.argsort(-(bias[layer] + rng.gumbel(size=experts)))
            number = 1 if most == 1 else int(rng.integers(0, most + 1))
            demand = tuple(int(e) for e in ranked[:number])
            order = tuple(int(e) for e in rng.permutation(demand)) if rng.random() < 0.5 else demand
            hint: tuple[int, ...] = ()
            if layer + scenario.distance < layers and rng.random() < 0.8:
                hint = tuple(int(e) for e in rng.permutation(experts)[: scenario.count])
            visits.append(Visit(step, layer, demand, order, tuple(rng.random(number).tolist()), hint))
    return tuple(visits)


def with_other_future(scenario: Scenario, cut: int) -> Scenario:
    """The same first `cut` visits, then others of the same number."""
    rng = np.random.default_rng([20260102, cut, len(scenario.visits)])
    steps = len(scenario.visits) // scenario.layers
    other = draw_visits(rng, scenario, steps, scenario.experts)
    return replace(scenario, visits=scenario.visits[:cut] + other[cut:])


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """A smaller scenario that still fails, by leaving out steps, then demanded experts, then hints."""
    tries = 0
    shrunk = True
    while shrunk:
        shrunk = False
        for smaller in smaller_ones(scenario):
            tries += 1
            if tries > SHRINKING:
                return scenario
            if fails(smaller):
                scenario, shrunk = smaller, True
                break
    return scenario


def smaller_ones(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with something left out: much first, then little."""
    visits, layers = scenario.visits, scenario.layers
    steps = len(visits) // layers
    length = steps // 2
    while length >= 1:
        for first in range(steps - length, -1, -length):
            kept = visits[: first * layers] + visits[(first + length) * layers :]
            yield replace(scenario, visits=tuple(replace(v, step=i // layers) for i, v in enumerate(kept)))
        length //= 2
    for index, visit in enumerate(visits):
        for expert in visit.demand:
            others = [i for i, e in enumerate(visit.demand) if e != expert]
            less = replace(
                visit,
                demand=tuple(visit.demand[i] for i in others),
                recency=tuple(e for e in visit.recency if e != expert),
                signal=tuple(visit.signal[i] for i in others),
            )
            yield replace(scenario, visits=(*visits[:index], less, *visits[index + 1 :]))
        if visit.hint:
            yield replace(scenario, visits=(*visits[:index], replace(visit, hint=()), *visits[index + 1 :]))
