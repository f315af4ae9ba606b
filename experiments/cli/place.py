"""`tracekit place`: which experts stay on the device."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.cli import console, options


def command(
    trace: options.TraceDirectory,
    output: Annotated[Path, typer.Option("--output", "-o", help="the placement to write, NAME.placement.toml")],
    slots: Annotated[str, typer.Option(help="how many experts to pin: 16/layer, 25%/layer; by popularity also 512")],
    by: Annotated[
        Literal["popularity", "marginal", "even"],
        typer.Option(help="what the trace demands most, what misses most beside an LRU cache, or any"),
    ] = "popularity",
    beside: Annotated[
        str | None, typer.Option(help="for --by marginal: slots that move beside what is pinned, 4/layer")
    ] = None,
    json: options.Json = False,
) -> None:
    """Choose experts that are on the device from the start and never leave, as a plan's placement.pinned.

    The file names the experts of each MoE layer, the trace they came from and its requests: replaying those under this
    placement is refused as evidence. docs/placement.md says what each way is good for.

    Example: tracekit place profile.trace --slots 2/layer --by marginal --beside 2/layer --output P.placement.toml
    """
    from engine.decisions.placing import place
    from engine.plan.capacity import Capacity
    from engine.plan.placement import SUFFIX, save_placement
    from tracekit.durable import check_new, check_place
    from tracekit.errors import PlanError
    from tracekit.popularity import popularity
    from tracekit.trace import Trace

    if output.suffix != ".toml":
        raise PlanError(f"--output {output}: name it as a plan will, NAME{SUFFIX}")
    check_place(output)
    check_new(output)
    opened = Trace.open(trace)
    per_layer = list(opened.manifest.experts_per_layer)
    rounds = sum(Capacity.parse(slots).groups(per_layer, max(per_layer), [])[0]) if by == "marginal" else 0
    with console.progress("placing", rounds) as advance:
        placement = place(opened, slots, by=by, beside=beside, progress=advance)
    save_placement(placement, output)
    counts = popularity(trace, per_layer)
    keys = list(placement.keys(per_layer, str(output)))
    share = float(counts.flat[keys].sum() / counts.sum())
    if json:
        console.emit_json({"placement": str(output), "by": by, "pinned": len(keys), "share_of_choices": share})
        return
    console.tell(f"{output}: {len(keys)} experts of {len(placement.pinned)} MoE layers, {share:.1%} of all choices")
    console.tell(f"next: tracekit replay OTHER.trace --capacity 50% --pinned {output}")
