"""What a cache holds, as a file that another one can begin with (`cache.warm = "NAME.placement.toml"`)."""

from collections.abc import Sequence

import numpy as np

from engine.decisions.evidence import digests_of
from engine.plan.placement import Placement, Source, by_layer
from engine.plan.plan import Plan
from policies.cache import ExpertCache
from policies.cache_state import RESIDENT
from tracekit.trace import Trace


def held_by(cache: ExpertCache, plan: Plan, experts_per_layer: Sequence[int], trace: Trace | None = None) -> Placement:
    """The experts in the cache, without those that are pinned or staged, and in which order they were used last.

    `trace` is whose routing brought them there, where that is known: its requests are no evidence on a plan that begins
    so. What a policy remembers beside the order of last uses is not kept.
    """
    state = cache.state
    keys = np.flatnonzero(state.place & RESIDENT)
    when = state.last_use[keys] if len(state.last_use) else state.seen[keys]
    rank = np.empty(len(keys), np.int64)
    rank[np.lexsort((keys, when))] = np.arange(len(keys))
    used = dict(zip(keys.tolist(), rank.tolist(), strict=True))
    held = by_layer(keys.tolist(), cache.spec.experts)
    return Placement(
        by="cache",
        slots=plan.cache.capacity,
        experts_per_layer=list(experts_per_layer),
        pinned=held,
        used={
            layer: [used[int(layer) * cache.spec.experts + expert] for expert in experts]
            for layer, experts in held.items()
        },
        source=None
        if trace is None
        else Source(
            trace=trace.path.name,
            trace_digest=trace.digest,
            model=trace.manifest.model.id,
            config_sha256=trace.manifest.model.config_sha256,
            requests=sorted(digests_of(trace)),
        ),
    )
