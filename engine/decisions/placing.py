"""Making a placement: which experts a trace says should stay on the device."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from engine.decisions.clustering import clusters_of
from engine.decisions.evidence import digests_of
from engine.decisions.pinning import most_popular
from engine.decisions.run import iter_decisions
from engine.plan.capacity import Capacity
from engine.plan.placement import Domain, Placement, Source, Ways, by_layer
from policies.cache_spec import CacheSpec
from policies.events import ADMIT, HOST, KEY_MASK, KIND_SHIFT
from tracekit.demand import Demand, iter_demand
from tracekit.errors import PlanError, TraceError
from tracekit.of_requests import of_requests
from tracekit.popularity import counted
from tracekit.trace import Trace


def place(
    trace: Trace,
    slots: str,
    *,
    by: Ways = "popularity",
    beside: str | None = None,
    labels: Sequence[str] | None = None,
    clusters: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Placement:
    """The experts of `trace` to pin into `slots`, a capacity in slots or as a share.

    popularity: those that the trace's tokens chose most; ties by number.
    marginal: in each layer, one after the other, the one that misses most in an LRU cache of `beside` slots beside
        those that are pinned already: what is popular all the time hits there anyway, and gains nothing by being
        pinned. Ties: the more popular one.
    even: spread over the numbers of the experts, whatever the trace says: a placement that knows nothing.

    With `labels`, the domain of each request by its number ("" for none), or with `clusters`, found by `seed`
    (engine.decisions.clustering), the placement also has what the same way chooses from each domain's requests alone.

    `progress` is called with 1 for each expert of a layer that `marginal` has chosen. Raises PlanError, CapacityError,
    TraceError.
    """
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing says what to place")
    if (beside is None) == (by == "marginal"):
        raise PlanError("--by marginal and --beside, the slots that move beside the placement, belong together")
    if labels is not None and clusters is not None:
        raise PlanError("--labels and --clusters say what domains there are each: give one of them")
    per_layer = list(trace.manifest.experts_per_layer)
    capacity = _slots(slots, per_layer, "--slots", by_layer_only=by != "popularity")
    moving = None if beside is None else _slots(beside, per_layer, "--beside", by_layer_only=True)

    def chosen(part: Trace) -> dict[str, list[int]]:
        return by_layer(_chosen(part, by, capacity, moving, progress), trace.num_experts)

    told_by: Literal["labels", "clusters"] | None = "labels" if labels is not None else None
    if clusters is not None:
        told_by, labels = "clusters", clusters_of(trace, clusters, seed)
    domains = {}
    for name in sorted({*(labels or ())} - {""}):
        part = of_requests(trace, [number for number, label in enumerate(labels or ()) if label == name])
        if part.tokens:
            counts = by_layer_counts(part)
            domains[name] = Domain(requests=part.manifest.requests, pinned=chosen(part), counts=counts)
    if told_by is not None and len(domains) < 2:
        raise PlanError(f"{trace.path} holds requests of {len(domains)} domains: a placement by domain needs two")
    manifest = trace.manifest
    return Placement(
        by=by,
        slots=slots,
        beside=beside,
        experts_per_layer=per_layer,
        pinned=chosen(trace),
        told_by=told_by,
        domains=domains,
        source=Source(
            trace=trace.path.name,
            trace_digest=trace.digest,
            model=manifest.model.id,
            config_sha256=manifest.model.config_sha256,
            requests=sorted(digests_of(trace)),
        ),
    )


def by_layer_counts(trace: Trace) -> dict[str, list[int]]:
    """How often tokens chose each expert, as a placement's file holds it."""
    per_layer = trace.manifest.experts_per_layer
    found = counted(trace).astype(np.int64).tolist()
    return {str(layer): row[:experts] for layer, (row, experts) in enumerate(zip(found, per_layer, strict=True))}


def _chosen(
    trace: Trace,
    by: Ways,
    capacity: Sequence[int],
    moving: Sequence[int] | None,
    progress: Callable[[int], object] | None,
) -> Sequence[int]:
    per_layer = trace.manifest.experts_per_layer
    counts = counted(trace)
    if by == "popularity":
        return most_popular(counts, per_layer, capacity, np.ones(counts.size, np.int64))
    if by == "even":
        return _spread(capacity, per_layer)
    return _marginal(trace, counts, capacity, moving or [], progress)


def _slots(text: str, per_layer: list[int], option: str, *, by_layer_only: bool) -> list[int]:
    parsed = Capacity.parse(text)
    if parsed.unit not in ("slots", "share") or (by_layer_only and not parsed.per_layer):
        raise PlanError(f"{option} {text!r}: give slots of each layer, as in 16/layer or 25%/layer")
    return list(parsed.groups(per_layer, max(per_layer), [])[0])


def _spread(capacity: Sequence[int], per_layer: Sequence[int]) -> list[int]:
    most = max(per_layer)
    return [
        layer * most + at * experts // min(slots, experts)
        for layer, (slots, experts) in enumerate(zip(capacity, per_layer, strict=True))
        for at in range(min(slots, experts))
    ]


def _marginal(
    trace: Trace,
    counts: np.ndarray,
    capacity: Sequence[int],
    moving: Sequence[int],
    progress: Callable[[int], object] | None,
) -> list[int]:
    experts, per_layer = trace.num_experts, trace.manifest.experts_per_layer
    demands = list(iter_demand(trace))
    left = np.minimum(capacity, per_layer)
    pinned: list[list[int]] = [[] for _ in per_layer]
    while left.any():
        misses = _misses(trace, demands, pinned, moving)
        for layer in np.flatnonzero(left).tolist():
            first = layer * experts
            free = [key for key in range(first, first + per_layer[layer]) if key not in pinned[layer]]
            pinned[layer].append(max(free, key=lambda key: (misses[key], counts.flat[key], -key)))
            left[layer] -= 1
            if progress is not None:
                progress(1)
    return [key for keys in pinned for key in keys]


def _misses(trace: Trace, demands: list[Demand], pinned: list[list[int]], moving: Sequence[int]) -> np.ndarray:
    """Misses [keys] of an LRU cache of `moving` slots in each layer beside the pinned experts."""
    spec = CacheSpec(
        layers=trace.layers,
        experts=trace.num_experts,
        capacity=tuple(len(keys) + slots for keys, slots in zip(pinned, moving, strict=True)),
        size=np.ones(trace.layers * trace.num_experts, np.int64),
        pinned=tuple(key for keys in pinned for key in keys),
    )
    found = np.zeros(len(spec.size), np.int64)
    for _, events in iter_decisions(trace, spec, demands=demands):
        kind = events.code >> KIND_SHIFT
        missed = events.code[(kind >= HOST) & (kind <= ADMIT)] & KEY_MASK
        found += np.bincount(missed, minlength=len(found))
    return found
