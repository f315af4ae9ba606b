"""`tracekit curve`: hit ratio against cache size."""

from typing import Annotated, Literal

import typer

from experiments.cli import console, options


def command(
    trace: options.TraceDirectory,
    policy: Annotated[str, typer.Option(help="eviction policies, separated by commas")] = "lru,lfu,belady-bypass",
    scope: Annotated[Literal["layer", "global"], typer.Option(help="a cache for each layer, or one for all")] = "layer",
    points: Annotated[int, typer.Option(min=2, help="at most this many cache sizes")] = 16,
    json: options.Json = False,
) -> None:
    """Hit ratio of several policies against cache size, without prefetching.

    belady-bypass is the bound: no policy hits more. belady, too, knows the future, but must keep whatever it loads, and
    where a cache holds few more experts than a token demands, policies that need not do better.

    One pass over the trace finds every size for lru and belady, so that many --points cost them no more than few; other
    policies are replayed at each size.

    Example: tracekit curve demo.trace --policy lru,lfu,belady-bypass --scope layer
    """
    from engine.curves.curve import BOUND, curve, sizes
    from tracekit.errors import PolicyError
    from tracekit.trace import Trace

    opened = Trace.open(trace)
    policies = list(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))
    if not policies:
        raise PolicyError("name at least one eviction policy, such as --policy lru,belady")
    slots = sizes(opened, scope, points)
    with console.progress("replaying", len(policies) * len(slots)) as advance:
        found = curve(opened, policies, scope=scope, slots=slots, progress=advance)
    if json:
        console.emit_json({"points": found})
        return
    ratio = {(point.policy, point.capacity): point.hit_ratio for point in found}
    shares = {point.capacity: point.share for point in found}
    rows = [
        [capacity, console.percent(share), *(console.percent(ratio[name, capacity]) for name in policies)]
        for capacity, share in shares.items()
    ]
    named = [f"{name} (bound)" if name == BOUND else name for name in policies]
    console.table(f"Hit ratio of {trace}", ["capacity", "of all experts", *named], rows)
