"""The rewriting stage: what a visit's tokens chose, altered given which experts are there, before anything is decided.

    gate -> choices of a visit -> rewriting -> demand -> decisions

One definition, interpreted or compiled, for replay and engine alike. What it alters is counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
from numba.core.errors import NumbaError

from policies.cache import allocated
from policies.cache_spec import CacheSpec
from policies.compile_errors import explain
from policies.compiled import source_files
from policies.compiled_rewriting import compiled_rewrite
from policies.fields import Layout, Value
from policies.registry import routing_policy
from policies.rewrite import FINE, REPEATED, SCORES, UNKNOWN, rewrite_visit
from tracekit.errors import PlanError, PolicyError
from tracekit.rows import UNUSED


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """Everything that a routing policy's choices follow from, beside the gates and the cache.

    `experts_per_layer` are those that it may name. `score_function` turns logits into weights: "softmax", "sigmoid" or
    "unknown", as a trace's manifest says. `places` i64 [layers * experts] is what a policy that needs a profile is
    told of it (policies.routing.base).
    """

    experts_per_layer: tuple[int, ...]
    policy: str = "none"
    parameters: Mapping[str, Value] | None = None
    score_function: str = "unknown"
    places: np.ndarray | None = None

    @property
    def reads(self) -> str:
        """What the policy reads; "nothing" where it alters nothing. Raises PolicyError."""
        return routing_policy(self.policy).reads


@dataclass(slots=True)
class Altered:
    """What became of choices: how many there were, how many are of another expert or dropped, and what these weighed.

    Weights are of the gate's own choice, `weight` of all of them. Sums of half-precision numbers are exact.
    """

    choices: int = 0
    replaced: int = 0
    dropped: int = 0
    weight: float = 0.0
    replaced_weight: float = 0.0
    dropped_weight: float = 0.0

    def add(self, other: "Altered") -> None:
        """Count these, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Rerouter:
    """A routing policy at work beside one cache.

    Args:
        spec: what to alter by. Raises PolicyError for a policy that cannot be, PlanError for a gate whose score
            function is unknown to a policy that reads scores, or a policy that lacks its profile.
        cache: what decides; of it the policy may know the sizes.
        compiled: False runs the same Python uncompiled.
    """

    def __init__(self, spec: RoutingSpec, cache: CacheSpec, *, compiled: bool = True) -> None:
        self.spec = spec
        size, nothing = cache.size.astype(np.int64), np.zeros(0, np.int64)
        self._layout = Layout(cache.layers, cache.experts, len(cache.capacity), cache.distance, size, nothing)
        self.policy = routing_policy(spec.policy)
        self.reads = self.policy.reads
        if self.reads == "scores" and spec.score_function not in SCORES:
            raise PlanError(
                f"routing policy {spec.policy!r} weighs experts that the gate did not choose, and how this gate makes "
                "weights of its logits is unknown: choose one that reads weights or logits (tracekit policies list)"
            )
        if self.policy.needs_profile and spec.places is None:
            raise PlanError(f"routing policy {spec.policy!r} needs routing.profile = a trace, or counts of one")
        self._score = SCORES.get(spec.score_function, 0)
        self._compiled = compiled_rewrite(self.policy) if compiled else None
        self.restart()

    def restart(self) -> None:
        """Forget every visit."""
        state = allocated(self.policy, self._layout, self.spec.parameters)
        if self.policy.needs_profile:
            cast(np.ndarray, state.place)[:] = self.spec.places
        self.at_work = state if self._compiled is not None else self.policy.interpreted(state)

    def visit(
        self, layer: int, there: np.ndarray, ids: np.ndarray, weights: np.ndarray, logits: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One visit's choices, altered.

        Args:
            layer: the MoE layer.
            there: bool or u8 [experts of the layer], what is resident or loaded ahead.
            ids: u16 [tokens, k], `UNUSED` (or any number that is no expert's) where there is no choice.
            weights: f16 [tokens, k].
            logits: f16 [tokens, experts of the layer or more]; may be None where the policy does not read them.

        Returns ids i64 [tokens, k] with UNUSED where there is no choice, and weights f64 [tokens, k], 0 there.
        Raises PolicyError where the policy left what is no choice.
        """
        own = self.spec.experts_per_layer[layer]
        new = ids.astype(np.int64)
        unused = new >= own
        new[unused] = UNUSED
        heavy = weights.astype(np.float64)
        heavy[unused] = 0.0
        present = np.zeros(own, np.uint8)
        if self.policy.looks:
            present[:] = there[:own] != 0
        if self.reads in ("logits", "scores"):
            assert logits is not None
            known = np.ascontiguousarray(logits[:, :own], np.float64)
        else:
            known = np.empty((len(new), 0))
        scores = np.empty(own if self.reads == "scores" else 0)
        fault = self._rewrite(layer, new, heavy, known, scores, present)
        if fault != FINE:
            what = {UNKNOWN: "an expert that there is not", REPEATED: "an expert twice"}.get(
                fault, "a weight that is no number"
            )
            raise PolicyError(
                f"routing policy {self.spec.policy!r} left {what} at layer {layer}; see: tracekit policies check "
                f"{self.spec.policy}"
            )
        return new, heavy

    def _rewrite(self, layer: int, *arrays: np.ndarray) -> int:
        if self._compiled is None:
            return rewrite_visit(self.at_work, layer, self._score, self.policy.looks, *arrays)
        try:
            return self._compiled(self.at_work, layer, self._score, self.policy.looks, *arrays)
        except NumbaError as error:
            why = explain(error, source_files((self.policy,)))
            raise PolicyError(f"routing policy {self.spec.policy!r} cannot be compiled: {why}") from error


def altered(before: np.ndarray, weights: np.ndarray, after: np.ndarray, real: np.ndarray) -> Altered:
    """What became of choices: ids before and after, and weights before, alike in shape; `real` where there was one."""
    gone, other = real & (after == UNUSED), real & (after != UNUSED) & (before != after)
    weight = weights.astype(np.float64)
    return Altered(
        choices=int(real.sum()),
        replaced=int(other.sum()),
        dropped=int(gone.sum()),
        weight=math.fsum(weight[real].tolist()),
        replaced_weight=math.fsum(weight[other].tolist()),
        dropped_weight=math.fsum(weight[gone].tolist()),
    )
