"""A routing policy on trial: choices of small gates, rewritten watched and interpreted, then compiled."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from policies.cache_spec import CacheSpec
from policies.conformance.guard import Violation, check_fields, explain, read_only
from policies.conformance.report import FAIL, NOT_RUN, PASS, RULES, Outcome
from policies.registry import hook_problem
from policies.rerouting import Rerouter, RoutingSpec
from policies.rewrite import SCORES
from policies.routing.base import RoutingPolicy
from tracekit.errors import PolicyError
from tracekit.rows import UNUSED

SCENARIOS = 40
Rewritten = list[tuple[list[int], list[float]]]
"""By visit: ids and weights of all tokens."""


@dataclass(frozen=True, slots=True)
class GateVisit:
    """One visit: ids u16 and weights f16 [tokens, k], logits f16 [tokens, experts], what is there u8 [experts]."""

    layer: int
    ids: np.ndarray
    weights: np.ndarray
    logits: np.ndarray
    there: np.ndarray

    def __str__(self) -> str:
        rows = [
            f"{' '.join('-' if one == UNUSED else str(one) for one in ids)} (weights {spaced(weights)})"
            for ids, weights in zip(self.ids.tolist(), self.weights.tolist(), strict=True)
        ]
        logits = "; ".join(spaced(row) for row in self.logits.tolist())
        return f"layer {self.layer}: {', '.join(rows)}, logits {logits}, there {np.flatnonzero(self.there).tolist()}"


@dataclass(frozen=True, slots=True)
class Gates:
    """The visits of a small model; `places` [layers * experts] are what a profile would say."""

    layers: int
    experts: int
    score: str
    visits: tuple[GateVisit, ...]
    places: np.ndarray

    def __str__(self) -> str:
        more = f" (visit {len(self.visits) - 1})" if len(self.visits) > 1 else ""
        return f"{self.layers} layer(s) of {self.experts} experts, {self.score}; {self.visits[-1]}{more}"


@dataclass
class RoutingTrial:
    """One policy on trial. `trying` is told each scenario before it is run, so that a hang can be described."""

    name: str
    policy: type[RoutingPolicy]
    trying: Callable[..., object]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    is_compiled: bool = False

    def interpreted(self) -> Iterator[Outcome]:
        """Outcomes of every rule that needs no compiled code, in order."""
        if problem := hook_problem(self.policy, RoutingPolicy):
            self.outcomes["signatures"] = Outcome("signatures", FAIL, problem)
        else:
            for gates in all_gates():
                self._try(gates)
        broken = bool(self.outcomes)
        for rule in RULES["routing"]:
            if rule in self.outcomes:
                yield self.outcomes[rule]
            elif broken and rule != "signatures":  # a run that ends early shows nothing of the others
                yield Outcome(rule, NOT_RUN, "mend the other rules first")
            elif rule != "compiled":
                yield Outcome(rule, PASS)

    def compiled(self, digest: str) -> Iterator[Outcome]:
        """The outcome of the compiled rule; of determinism as well, if `digest` is not that of this process."""
        if self.digest() != digest:
            message = "another process alters differently: no clock, no unseeded or hashed numbers"
            yield Outcome("deterministic", FAIL, message)
            yield Outcome("compiled", NOT_RUN, "mend the other rules first")
            return
        for gates in all_gates():
            self.trying(f"compiled code and {gates}", not self.is_compiled)
            try:
                found = self._rewrite(gates, compiled=True)
            except PolicyError as error:
                yield Outcome("compiled", FAIL, str(error))
                return
            self.is_compiled = True
            given = self._rewrite(gates)
            if found != given:
                place = next(at for at, (one, other) in enumerate(zip(given, found, strict=True)) if one != other)
                said = f"interpreted it left {given[place]}, compiled {found[place]}"
                yield Outcome("compiled", FAIL, f"{said}; with {until(gates, place)}")
                return
        yield Outcome("compiled", PASS)

    def digest(self) -> str:
        """A digest of what the interpreted policy makes of every scenario."""
        return hashlib.sha256(repr([self._rewrite(gates) for gates in all_gates()]).encode()).hexdigest()

    def _try(self, gates: Gates) -> None:
        self.trying(str(gates))
        try:
            found = self._rewrite(gates, watched=True)
        except Violation as violation:
            if violation.rule not in self.outcomes:
                self.outcomes[violation.rule] = Outcome(violation.rule, FAIL, " ".join(str(violation).split()))
            return
        if self._rewrite(gates) != found:
            self._fail("deterministic", "two runs differ: no clock, no state outside the declared arrays", gates)
        half = max(1, len(gates.visits) // 2)
        other = replace(gates, visits=gates.visits[:half] + gates.visits[half:][::-1])
        if self._rewrite(other)[:half] != found[:half]:
            self._fail("no-peeking", f"what comes after visit {half} changed what it made of earlier ones", gates)

    def _rewrite(self, gates: Gates, *, compiled: bool = False, watched: bool = False) -> Rewritten:
        """What the policy makes of each visit. Raises Violation where it is watched."""
        size = np.ones(gates.layers * gates.experts, np.int64)
        spec = RoutingSpec((gates.experts,) * gates.layers, self.name, None, gates.score, gates.places)
        rerouter = Rerouter(spec, CacheSpec(gates.layers, gates.experts, (1,), size), compiled=compiled)
        if watched:
            watch(rerouter)
        found = []
        for number, visit in enumerate(gates.visits):
            try:
                with np.errstate(all="ignore"):
                    ids, weights = rerouter.visit(visit.layer, visit.there, visit.ids, visit.weights, visit.logits)
            except Violation as violation:
                raise Violation(violation.rule, f"{violation}; with {until(gates, number)}") from None
            found.append((ids.ravel().tolist(), weights.ravel().tolist()))
        return found

    def _fail(self, rule: str, message: str, gates: Gates) -> None:
        self.outcomes.setdefault(rule, Outcome(rule, FAIL, " ".join(f"{message}; with {gates}".split())))


def watch(rerouter: Rerouter) -> None:
    """Replace the hook of an interpreted policy by a watched one, which raises Violation."""
    policy = rerouter.at_work
    own = vars(policy)
    for shared in ("size", "last_use", "place"):
        own[shared] = read_only(own[shared])
    hook = policy.rewrite
    expected: dict[str, object] = {}

    def call(
        layer: int,
        ids: np.ndarray,
        weights: np.ndarray,
        logits: np.ndarray,
        scores: np.ndarray,
        present: np.ndarray,
    ) -> None:
        try:
            result = hook(layer, ids, weights, read_only(logits), read_only(scores), read_only(present))
        except Exception as error:
            raise explain(error, "rewrite", policy) from None
        check_fields(policy, "rewrite", expected)
        if result is not None:
            raise Violation("choices", f"rewrite() returned {result!r}: it alters ids and weights in place")
        check_choice(ids, weights, len(present))

    own["rewrite"] = call
    expected.update(own)


def check_choice(ids: np.ndarray, weights: np.ndarray, experts: int) -> None:
    """Raise Violation unless a token's choice is one."""
    chosen = [expert for expert in ids.tolist() if expert != UNUSED]
    for expert in chosen:
        if not 0 <= expert < experts:
            raise Violation("choices", f"rewrite() left {expert}: give 0 to {experts - 1}, or {UNUSED} for none")
    if len(set(chosen)) < len(chosen):
        raise Violation("choices", f"rewrite() left an expert twice: {spaced(chosen)}")
    for expert, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if expert != UNUSED and not math.isfinite(weight):
            raise Violation("choices", f"rewrite() left a weight of {weight} for expert {expert}")


def all_gates(number: int = SCENARIOS) -> Iterator[Gates]:
    """The choices that every policy is tried on: the same ones each time, larger and less regular as they go."""
    for seed in range(number):
        rng = np.random.default_rng([20260104, seed])
        layers, experts = (1, 3) if seed < 8 else (int(rng.integers(1, 4)), int(rng.integers(2, 9)))
        top_k = int(rng.integers(1, experts + 1))
        score = list(SCORES)[seed % len(SCORES)]
        visits = []
        for visit in range(2 if seed < 8 else 12):
            tokens = 1 if seed < 8 else int(rng.integers(1, 4))
            # Halves on a coarse grid: ties, between logits and between weights, are common.
            logits = (np.round(rng.normal(size=(tokens, experts)) * 4) / 4).astype(np.float16)
            real = logits.astype(np.float64)
            ids = np.argsort(-real, axis=1, kind="stable")[:, :top_k].astype(np.uint16)
            scores = np.exp(real) if score == "softmax" else 1 / (1 + np.exp(-real))
            weights = np.take_along_axis(scores, ids.astype(np.int64), axis=1)
            weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)
            if seed % 5 == 4:
                ids[rng.random(ids.shape) < 0.2] = UNUSED
            there = (rng.random(experts) < rng.choice([0.0, 0.4, 0.7, 1.0])).astype(np.uint8)
            visits.append(GateVisit(visit % layers, ids, weights, logits, there))
        places = np.concatenate([rng.permutation(experts) for _ in range(layers)])
        yield Gates(layers, experts, score, tuple(visits), places)


def until(gates: Gates, place: int) -> Gates:
    """The visits up to one of them."""
    return replace(gates, visits=gates.visits[: place + 1])


def spaced(numbers: list[int] | list[float]) -> str:
    """`0 3 1`."""
    return " ".join(f"{number:g}" for number in numbers)
