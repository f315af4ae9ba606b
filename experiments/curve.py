"""Hit ratio against cache size, by replaying each size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from engine.passes import Replayed, run
from engine.plan import Plan, plan_from_dict
from policies.decide import HIT_PREFETCHED, STREAM
from tracekit import Trace

Scope = Literal["layer", "global"]
POINTS = 16


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Hits of one policy at one cache size, without prefetching. `share` of all experts are held."""

    policy: str
    capacity: str
    share: float
    hit_ratio: float
    decode_hit_ratio: float


def sizes(trace: Trace, scope: Scope, points: int = POINTS) -> list[int]:
    """Cache sizes in slots (of a layer, or of the model) from one to everything, at most `points`, evenly spread."""
    per_layer = trace.manifest.experts_per_layer
    most = max(per_layer) if scope == "layer" else sum(per_layer)
    return sorted({int(size) for size in np.linspace(1, most, min(points, most)).round()})


def curve_plans(trace: Trace, policies: Sequence[str], scope: Scope, slots: Sequence[int]) -> Iterator[Plan]:
    """The plan behind every point of the curves."""
    for policy in policies:
        for count in slots:
            capacity = f"{count}/layer" if scope == "layer" else str(count)
            yield plan_from_dict({"cache": {"capacity": capacity}, "eviction": {"policy": policy}})


def curve(
    trace: Trace,
    policies: Sequence[str],
    *,
    scope: Scope = "layer",
    slots: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[CurvePoint]:
    """Hit ratios of `policies` at each cache size of `slots` (default: `sizes`).

    Raises PolicyError for an unknown policy, CapacityError for more slots than there are experts.
    """
    chosen = list(slots) if slots is not None else sizes(trace, scope)
    experts = sum(trace.manifest.experts_per_layer)
    found = []
    for plan in curve_plans(trace, policies, scope, chosen):
        done = run(trace, plan)
        held = int(plan.capacity.amount) * (trace.layers if scope == "layer" else 1)
        found.append(
            CurvePoint(
                policy=plan.eviction.policy,
                capacity=plan.cache.capacity,
                share=min(1.0, held / experts),
                hit_ratio=_hit_ratio(done, slice(0, 2)),
                decode_hit_ratio=_hit_ratio(done, slice(1, 2)),
            )
        )
        if progress is not None:
            progress(1)
    return found


def _hit_ratio(done: Replayed, phases: slice) -> float:
    kinds = done.kinds[phases].sum(axis=0)
    lookups = int(kinds[: STREAM + 1].sum())
    return int(kinds[: HIT_PREFETCHED + 1].sum()) / lookups if lookups else 0.0
