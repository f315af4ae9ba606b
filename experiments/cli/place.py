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
    labels: Annotated[
        str | None,
        typer.Option(help="also for each domain: a file of prompts with their domain, or trace: as the trace says"),
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(min=2, help="also for each of this many domains, found in the requests' routing")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of --clusters")] = 0,
    json: options.Json = False,
) -> None:
    """Choose experts that are on the device from the start and never leave, as a plan's placement.pinned.

    With --labels or --clusters the file also has a table for each domain of requests, among which a plan chooses by
    placement.by = "label" or placement.detect = TOKENS, request by request.

    The file names the experts of each MoE layer, the trace they came from and its requests: replaying those under this
    placement is refused as evidence. docs/placement.md says what each way is good for.

    Example: tracekit place profile.trace --slots 2/layer --by marginal --beside 2/layer --output P.placement.toml
    """
    from engine.decisions.placing import place
    from engine.plan.capacity import Capacity
    from engine.plan.placement import save_placement
    from tracekit.labels import labels_of
    from tracekit.popularity import popularity
    from tracekit.trace import Trace

    options.check_placement("--output", output)
    opened = Trace.open(trace)
    per_layer = list(opened.manifest.experts_per_layer)
    told = None if labels is None else labels_of(opened, labels)
    rounds = sum(Capacity.parse(slots).groups(per_layer, max(per_layer), [])[0]) if by == "marginal" else 0
    rounds *= 1 + (clusters or (0 if told is None else len({*told} - {""})))
    with console.progress("placing", rounds) as advance:
        placement = place(
            opened, slots, by=by, beside=beside, labels=told, clusters=clusters, seed=seed, progress=advance
        )
    save_placement(placement, output)
    counts = popularity(trace, per_layer)
    keys = list(placement.keys(per_layer, str(output)))
    share = float(counts.flat[keys].sum() / counts.sum())
    requests = {name: domain.requests for name, domain in placement.domains.items()}
    if json:
        found = {"placement": str(output), "by": by, "pinned": len(keys), "share_of_choices": share}
        console.emit_json(found | {"domains": requests})
        return
    console.tell(f"{output}: {len(keys)} experts of {len(placement.pinned)} MoE layers, {share:.1%} of all choices")
    if requests:
        console.tell("and for each domain: " + ", ".join(f"{name} ({count})" for name, count in requests.items()))
    how = "" if not requests else " --domain-by label" if labels is not None else " --detect 32"
    console.tell(f"next: tracekit replay OTHER.trace --capacity 50% --pinned {output}{how}")
