"""Hit ratio against cache size: every size from one pass where the policy allows it, else by replaying each size."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from engine.curves.stack_curve import STACK_CURVES, Scope, StackCurve
from engine.plan.plan import Plan, plan_from_dict
from engine.replay.passes import Replayed, run
from engine.replay.setting import Setting
from policies.events import ADMIT, HIT_PREFETCHED
from tracekit.errors import TraceError
from tracekit.rows import DECODE
from tracekit.trace import Trace

POINTS = 16
BOUND = "belady-bypass"
"""The policy that no other hits more than, at the same cache size and from an empty cache."""


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

    The policies of `STACK_CURVES` take one pass for any number of sizes, the others one for each.

    Raises PolicyError for an unknown policy, CapacityError for more slots than there are experts, TraceError for a
    trace without tokens.
    """
    if trace.tokens == 0:
        raise TraceError(f"{trace.path} holds no tokens: nothing to replay")
    chosen = list(slots) if slots is not None else sizes(trace, scope)
    experts = sum(trace.manifest.experts_per_layer)
    found = []
    passes: dict[str, StackCurve] = {}
    for plan in curve_plans(trace, policies, scope, chosen):
        policy, count = plan.eviction.policy, int(plan.capacity.amount)
        plan.capacity.groups(trace.manifest.experts_per_layer, trace.num_experts, [])
        if policy in STACK_CURVES:
            if policy not in passes:
                passes[policy] = STACK_CURVES[policy](trace, scope)
            lookups, hits = passes[policy].lookups, passes[policy].hits[:, count]
        else:
            lookups, hits = _replayed(run(trace, Setting.of(trace.manifest, plan).spec)[0])
        held = count * (trace.layers if scope == "layer" else 1)
        found.append(
            CurvePoint(
                policy=policy,
                capacity=plan.cache.capacity,
                share=min(1.0, held / experts),
                hit_ratio=_ratio(hits.sum(), lookups.sum()),
                decode_hit_ratio=_ratio(hits[DECODE], lookups[DECODE]),
            )
        )
        if progress is not None:
            progress(1)
    return found


def _replayed(done: Replayed) -> tuple[np.ndarray, np.ndarray]:
    """Lookups and hits [phases]."""
    return done.kinds[:, : ADMIT + 1].sum(axis=1), done.kinds[:, : HIT_PREFETCHED + 1].sum(axis=1)


def _ratio(hits: np.integer, lookups: np.integer) -> float:
    return int(hits) / int(lookups) if lookups else 0.0
