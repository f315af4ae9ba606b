"""`CacheSpec`: what a cache decides by, and the slots that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from policies.fields import Value
from policies.switching import Domains
from tracekit.errors import CapacityError

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class LowCopies:
    """The low copies of experts in two formats, and the rule of which copy serves (policies.precision).

    `capacity` [groups] is in slots; `popularity` [keys] is each expert's place in its layer by a profile, if the rule
    needs one.
    """

    capacity: tuple[int, ...]
    rule: str
    parameters: Mapping[str, Value] | None = None
    popularity: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Everything that decides a cache's decisions.

    `capacity` [groups] and `size` [keys] are in the same unit: slots (size 1) or bytes. One group per layer, or one
    for all layers. `pinned` keys are resident from the start and never leave; what is left of the capacity is the
    policy's, which never hears of them. `predictor` and `estimator` are the
    directories of what was fitted for prefetching and for eviction, which others read (engine.decisions.foresight).
    `wrap`: the last layers prefetch for the first ones of the next step. `where` says what a miss may be
    (policies.misses): of "split" so many PARTS are `copied`, of "auto" experts of up to `most_tokens` [layers] tokens
    are the host's. `admission` says which of the missing experts may come into the cache, at most `per_step` of them at
    a step, `even` by layer. `reset`: the cache starts anew with every request. `warm` is the trace that it is warmed
    with, `begins` the keys that it begins with, the most recent last. `domains`: what is pinned, or warm, changes with
    the domain of what is served; each group's capacity is less by the most that any of them pins there. With `low` all
    else is of the high copies, and capacity is in slots (policies.tiered_cache). Who says when a request begins and of
    what domain it is, and reads that trace, is engine.decisions.
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
    reset: bool = False
    warm: str | None = None
    begins: tuple[int, ...] = ()
    wrap: bool = False
    domains: Domains | None = None
    where: str = "copy"
    copied: int | None = None
    most_tokens: tuple[int, ...] = ()
    admission: str = "always"
    admission_parameters: Mapping[str, Value] | None = None
    per_step: int | None = None
    even: bool = False
    low: LowCopies | None = None

    @property
    def serves_otherwise(self) -> bool:
        """Whether a miss may be anything but copied, and kept if there is room."""
        return self.where != "copy" or self.per_step is not None or self.admission != "always"

    @property
    def meaning(self) -> tuple[str, bytes]:
        """Equal for specs that decide alike."""
        return repr(replace(self, size=NOTHING)), self.size.tobytes()

    @property
    def counts_tokens(self) -> bool:
        """Whether decisions depend on how many tokens chose an expert."""
        return self.where in ("split", "auto")


def targets_of(spec: CacheSpec) -> np.ndarray:
    """The layer that is prefetched for at each layer, of the next step where the distance wraps; -1 for none: i64."""
    target = np.arange(spec.layers) + spec.distance
    past = target >= spec.layers
    return np.where(past, target - spec.layers if spec.wrap else -1, target)


def most_residents(spec: CacheSpec) -> np.ndarray:
    """How many experts each capacity group can hold at most, as many of its smallest as fit: i64 [groups]."""
    smallest = spec.size.reshape(len(spec.capacity), -1).min(axis=1)
    members = spec.size.size // len(spec.capacity)
    most: np.ndarray = np.minimum(np.array(spec.capacity, np.int64) // np.maximum(smallest, 1), members)
    return most


def reserved(spec: CacheSpec) -> np.ndarray:
    """What is pinned takes of each group's capacity, at most, whatever domain is served: i64 [groups].

    Raises CapacityError where something does not fit.
    """
    most = np.zeros(len(spec.capacity), np.int64)
    for pinned in (spec.pinned, *(() if spec.domains is None else (kept.pinned for kept in spec.domains.kept))):
        taken = np.zeros_like(most)
        for key in pinned:
            layer, expert = divmod(key, spec.experts)
            group = layer if len(most) > 1 else 0
            taken[group] += spec.size[key]
            if taken[group] > spec.capacity[group]:
                raise CapacityError(
                    f"pinned experts do not fit into the cache (expert {expert} of MoE layer {layer}): pin fewer, or "
                    f"give {'that layer' if len(most) > 1 else 'the cache'} more capacity"
                )
        most = np.maximum(most, taken)
    return most


def slots_of(spec: CacheSpec) -> int:
    """The physical slots of such a cache, staging buffers included, of all copies."""
    own = int(most_residents(spec).sum()) + max(spec.staging, 1)
    return own if spec.low is None else own + slots_of(low_spec(spec, spec.low))


def low_spec(spec: CacheSpec, low: LowCopies) -> CacheSpec:
    """The cache of the low copies: nothing is pinned in it, nothing prefetched."""
    return CacheSpec(
        layers=spec.layers,
        experts=spec.experts,
        capacity=low.capacity,
        size=np.ones(spec.layers * spec.experts, np.int64),
        eviction=spec.eviction,
        eviction_parameters=spec.eviction_parameters,
        staging=spec.staging,
    )
