"""`tracekit curve`: hit ratio against cache size."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scope(StrEnum):
    layer = "layer"
    all_layers = "global"


def command(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    policy: Annotated[str, typer.Option("--policy", help="eviction policies, separated by commas")] = "lru,lfu,belady",
    scope: Annotated[Scope, typer.Option("--scope", help="a cache for each layer, or one for all")] = Scope.layer,
    points: Annotated[int, typer.Option(min=2, help="at most this many cache sizes")] = 16,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Hit ratio of several policies against cache size, without prefetching.

    One pass over the trace finds every size for lru and belady, so that many --points cost them no more than few; other
    policies are replayed at each size.

    Example: tracekit curve demo.trace --policy lru,lfu,belady --scope layer
    """
    import msgspec

    from engine.curves.curve import curve, sizes
    from experiments.cli import console
    from experiments.cli.results import percent
    from tracekit import Trace
    from tracekit.errors import PolicyError

    opened = Trace.open(trace)
    policies = list(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))
    if not policies:
        raise PolicyError("name at least one eviction policy, such as --policy lru,belady")
    slots = sizes(opened, scope.value, points)
    with console.progress("replaying", len(policies) * len(slots)) as advance:
        found = curve(opened, policies, scope=scope.value, slots=slots, progress=advance)
    if json:
        console.emit_json([msgspec.to_builtins(point) for point in found])
        return
    ratio = {(point.policy, point.capacity): point.hit_ratio for point in found}
    shares = {point.capacity: point.share for point in found}
    rows = [
        [capacity, percent(share), *(percent(ratio[name, capacity]) for name in policies)]
        for capacity, share in shares.items()
    ]
    console.table(f"Hit ratio of {trace}", ["capacity", "of all experts", *policies], rows)
