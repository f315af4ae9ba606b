"""What a cache holds, as a file that another one can begin with (`cache.warm = "NAME.placement.toml"`)."""

from collections.abc import Sequence

from engine.decisions.evidence import digests_of
from engine.plan.placement import Placement, Source, by_layer
from engine.plan.plan import Plan
from policies.tiered_cache import AnyCache
from tracekit.trace import Trace


def held_by(cache: AnyCache, plan: Plan, experts_per_layer: Sequence[int], trace: Trace | None = None) -> Placement:
    """The experts in the cache, without those that are pinned or staged, in the order in which the policy lets them go.

    `trace` is whose routing brought them there, where that is known: its requests are no evidence on a plan that begins
    so. Of experts in two formats it is the high copies. An LRU cache that begins so goes on as this one would; what
    other policies remember beside is not kept.
    """
    experts, keys = cache.spec.experts, cache.order_of_leaving()
    used = {key: place for place, key in enumerate(keys)}
    held = by_layer(keys, experts)
    return Placement(
        by="cache",
        slots=plan.cache.capacity,
        experts_per_layer=list(experts_per_layer),
        pinned=held,
        used={layer: [used[int(layer) * experts + expert] for expert in own] for layer, own in held.items()},
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
