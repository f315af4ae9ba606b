"""The rules, tried one scenario after another in the process of `policies.conformance.__main__`."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from policies.admission.base import Admission
from policies.cache import ExpertCache
from policies.cache_state import PINNED, RESIDENT, SLOT, Batch
from policies.conformance.guard import Violation, keeps_order, watch
from policies.conformance.report import EXEMPT, FAIL, NOT_RUN, PASS, RULES, Outcome
from policies.conformance.scenario import Scenario, scenarios, shrink, with_other_future
from policies.events import KIND_NAMES
from policies.eviction.base import EvictionPolicy
from policies.fields import Policy
from policies.precision.base import TierRule
from policies.prefetch.base import Prefetcher
from policies.registry import hook_problem, hooks
from policies.routing.base import RoutingPolicy
from tracekit.errors import PolicyError, did_you_mean

BASES: dict[str, type[Policy]] = {
    **{"eviction": EvictionPolicy, "prefetch": Prefetcher, "admission": Admission},
    **{"routing": RoutingPolicy, "precision": TierRule},
}
WRAPPED = 24  # scenarios in which it prefetches past the last layer
BESIDE_PINNED = 12  # scenarios in which some experts are in the cache for good
CUTS = 3  # how many futures each scenario is given
Decided = list[tuple[int, int, int, int]]  # visit, kind, key, slot


@dataclass
class Trial:
    """One policy on trial. `trying` is told each scenario before it is run, so that a hang can be described."""

    kind: str
    name: str
    policy: type[Policy]
    trying: Callable[..., object]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    is_compiled: bool = False

    def interpreted(self) -> Iterator[Outcome]:
        """Outcomes of every rule that needs no compiled code, in order."""
        problem = self._signatures()
        if problem:
            self.outcomes["signatures"] = Outcome("signatures", FAIL, problem)
        else:
            self._watched()
            if not self.outcomes:
                self._deterministic()
            if not self.outcomes:
                self._no_peeking()
        broken = bool(self.outcomes)
        for rule in RULES[self.kind]:
            if rule in self.outcomes:
                yield self.outcomes[rule]
            elif broken and rule != "signatures":  # a run that ends early shows nothing of the others
                yield Outcome(rule, NOT_RUN, "mend the other rules first")
            elif self.policy.bound and rule in ("demand", "no-peeking"):
                yield Outcome(rule, EXEMPT, "a bound may")
            elif rule == "order" and not keeps_order(self.policy):
                yield Outcome(rule, EXEMPT, "it is not Ordered")
            elif rule != "compiled":
                yield Outcome(rule, PASS)

    def compiled(self, digest: str) -> Iterator[Outcome]:
        """The outcome of the compiled rule; of determinism as well, if `digest` is not that of this process."""
        if self.digest() != digest:
            message = "another process decides differently on the same routing: no clock, no unseeded or hashed numbers"
            yield Outcome("deterministic", FAIL, message)
            yield Outcome("compiled", NOT_RUN, "mend the other rules first")
            return
        for scenario in self._scenarios():
            try:
                problem = self._compiled_differs(scenario)
            except PolicyError as error:
                yield Outcome("compiled", FAIL, str(error))
                return
            if problem:
                smaller = shrink(scenario, lambda s: bool(self._compiled_differs(s)))
                yield Outcome("compiled", FAIL, f"{self._compiled_differs(smaller)}; with {smaller}")
                return
        yield Outcome("compiled", PASS)

    def digest(self) -> str:
        """A digest of the interpreted decisions on every scenario."""
        return hashlib.sha256(repr([self._decide(s) for s in self._scenarios()]).encode()).hexdigest()

    def _scenarios(self) -> Iterator[Scenario]:
        """The routings it is tried on; beside pinned experts, too; who says that it can is also asked for the next
        step."""
        yield from scenarios()
        yield from (scenario.beside_pinned(seed) for seed, scenario in enumerate(scenarios(BESIDE_PINNED)))
        if issubclass(self.policy, Prefetcher) and self.policy.wraps:
            yield from (scenario.past_the_end() for scenario in scenarios(WRAPPED))

    def _signatures(self) -> str:
        base = BASES[self.kind]
        problem = hook_problem(self.policy, base)
        if problem:
            return problem
        for owner in self.policy.__mro__[: self.policy.__mro__.index(base)]:
            for name, value in vars(owner).items():
                meant = did_you_mean(name, hooks(base)) or name.startswith("on_")
                if callable(value) and name not in hooks(base) and meant:
                    return f"{name}() is no hook, so nothing calls it{did_you_mean(name, hooks(base))}"
        return ""

    def _watched(self) -> None:
        for scenario in self._scenarios():
            found = self._violation(scenario)
            if found is not None and found.rule not in self.outcomes:
                smaller = shrink(scenario, partial(self._breaks, found.rule))
                self._fail(found.rule, str(self._violation(smaller)), smaller)

    def _deterministic(self) -> None:
        for scenario in self._scenarios():
            if self._decide(scenario) != self._decide(scenario):
                message = "two runs differ: no clock, no unseeded numbers, no state outside the declared arrays"
                self._fail("deterministic", message, scenario)
                return

    def _no_peeking(self) -> None:
        if self.policy.bound:
            return
        for scenario in self._scenarios():
            visits = len(scenario.visits)
            for cut in np.random.default_rng([20260103, visits]).integers(1, visits, CUTS).tolist():
                if self._peeks(scenario, cut):
                    ahead = visits - cut
                    smaller = shrink(scenario, partial(self._peeks_ahead, ahead))
                    message = self._peeks(smaller, _cut(smaller, ahead))
                    self._fail("no-peeking", message, smaller)
                    return

    def _peeks(self, scenario: Scenario, cut: int) -> str:
        """How the decisions on the first `cut` visits change with the later ones, or ""."""
        if not 0 < cut < len(scenario.visits):
            return ""
        try:
            given = [event for event in self._decide(scenario) if event[0] < cut]
            other = [event for event in self._decide(with_other_future(scenario, cut)) if event[0] < cut]
        except Violation:
            return ""
        difference = _difference(given, other, scenario)
        reads = "" if self.policy.reads == "nothing" else f" (it reads {self.policy.reads!r})"
        return difference and f"after visit {cut} the future was changed, and before it {difference}{reads}"

    def _compiled_differs(self, scenario: Scenario) -> str:
        """How compiled decisions differ from interpreted ones, or "" (also if the policy is not safe to compile)."""
        try:
            given = self._decide(scenario)
        except Violation:
            return ""
        self.trying(f"compiled code and {scenario}", not self.is_compiled)
        cache, batch = self._cache(scenario, compiled=True)
        decided = cache.run(batch).rows()
        self.is_compiled = True
        return _difference(given, decided, scenario, "interpreted", "compiled")

    def _breaks(self, rule: str, scenario: Scenario) -> bool:
        found = self._violation(scenario)
        return found is not None and found.rule == rule

    def _peeks_ahead(self, ahead: int, scenario: Scenario) -> bool:
        return bool(self._peeks(scenario, _cut(scenario, ahead)))

    def _violation(self, scenario: Scenario) -> Violation | None:
        try:
            self._decide(scenario)
        except Violation as violation:
            return violation
        return None

    def _decide(self, scenario: Scenario) -> Decided:
        """The watched, interpreted decisions, visit by visit. Raises Violation."""
        self.trying(str(scenario))
        cache, batch = self._cache(scenario, compiled=False)
        deciding = {"eviction": cache._eviction, "prefetch": cache._prefetcher, "admission": cache._admission}
        policy = deciding[self.kind]
        if policy is not None:
            watch(policy, BASES[self.kind], cache.state)
        decided: Decided = []
        for visit in range(len(batch.layer)):
            try:
                with np.errstate(all="ignore"):
                    decided += cache.run(_one(batch, visit)).rows()
            except Exception as error:
                raise Violation("runs", f"visit {visit} cannot be decided: {type(error).__name__}: {error}") from error
            _check_capacity(cache, scenario, visit)
        return decided

    def _cache(self, scenario: Scenario, *, compiled: bool) -> tuple[ExpertCache, Batch]:
        """A cache that decides by the policy, beside ordinary ones of the other kinds."""
        eviction, prefetch = "lru", "gate"
        if self.kind == "eviction":
            eviction = self.name
        elif self.kind == "prefetch":
            prefetch = self.name
        spec = scenario.spec(eviction, prefetch)
        if self.kind == "admission":  # some with misses on the host, some with a limit
            visits = len(scenario.visits)
            where, limit = ("copy", "host")[visits % 2], (None, 1, 3)[visits % 3]
            spec = replace(spec, admission=self.name, where=where, per_step=limit, even=visits % 4 == 0)
        signal = self.policy.reads if self.kind == "eviction" else "nothing"
        if signal == "next-use":  # knows the next use of demanded experts only
            spec = replace(spec, into_cache=False)
        hint = self.policy.reads if self.kind == "prefetch" else "lookahead"
        batch = scenario.batch(signal, hint)
        if self.kind == "admission" and self.policy.reads == "gate-share":
            batch = batch._replace(gate=scenario.batch("gate-weight", hint).signal)
        return ExpertCache(spec, compiled=compiled), batch

    def _fail(self, rule: str, message: str, scenario: Scenario) -> None:
        self.outcomes[rule] = Outcome(rule, FAIL, " ".join(f"{message}; with {scenario}".split()))


def _cut(scenario: Scenario, ahead: int) -> int:
    """Where the last `ahead` visits begin; at the last visit if there are fewer."""
    return max(len(scenario.visits) - ahead, 1)


def _one(batch: Batch, visit: int) -> Batch:
    first, last = int(batch.start[visit]), int(batch.start[visit + 1])
    return Batch(
        layer=batch.layer[visit : visit + 1],
        start=np.array([0, last - first], np.int64),
        demand=batch.demand[first:last],
        recency=batch.recency[first:last],
        signal=batch.signal[first:last],
        signal_recency=batch.signal_recency[first:last],
        hint=batch.hint[visit : visit + 1],
        gate=batch.gate[first:last],
    )


def _check_capacity(cache: ExpertCache, scenario: Scenario, visit: int) -> None:
    state = cache.state
    resident = np.flatnonzero(state.place & (RESIDENT | PINNED))
    for group, capacity in enumerate(scenario.capacity):
        members = resident[state.group_of[resident // scenario.experts] == group]
        taken = sum(scenario.size[key] for key in members)
        if taken > capacity:
            raise Violation("capacity", f"after visit {visit} group {group} holds {taken} of {capacity}")
    slots = state.place[state.place != 0] >> SLOT
    if len(set(slots.tolist())) != len(slots):
        raise Violation("capacity", f"after visit {visit} two experts are in one slot")


def _difference(
    given: Decided, other: Decided, scenario: Scenario, one: str = "it decided", two: str = "then it decided"
) -> str:
    """The first decision in which two logs differ, in words, or ""."""
    if given == other:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(given, other, strict=False)) if a != b), min(len(given), len(other)))
    return f"{one}: {_words(given, at, scenario)}, {two}: {_words(other, at, scenario)}"


def _words(decided: Decided, at: int, scenario: Scenario) -> str:
    if at >= len(decided):
        return "nothing more"
    visit, kind, key, _ = decided[at]
    name = KIND_NAMES[kind].partition("-")[0]  # a hit is a hit
    return f"visit {visit} {name} expert {key % scenario.experts} of layer {key // scenario.experts}"
