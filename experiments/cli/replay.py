"""`tracekit replay`: a plan's hits, bytes and time on a recorded trace."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def command(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    plan: Annotated[Path | None, typer.Option("--plan", help="a plan file (TOML)")] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="eviction policy, or ./file.py:Class")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="for --policy static: a trace whose popular experts are kept")
    ] = None,
    eviction_artefact: Annotated[
        Path | None, typer.Option(help="for --policy learned: what tracekit fit wrote")
    ] = None,
    prefetch_artefact: Annotated[
        Path | None, typer.Option(help="for --prefetch learned: what tracekit fit wrote")
    ] = None,
    allow_fitted: Annotated[
        bool, typer.Option("--allow-fitted", help="replay also what a predictor was fitted on; the result is marked")
    ] = False,
    capacity: Annotated[
        str | None, typer.Option("--capacity", help="4/layer, 512, 2000MiB or 25%; each also with /layer")
    ] = None,
    prefetch: Annotated[str | None, typer.Option("--prefetch", help="prefetcher")] = None,
    prefetch_distance: Annotated[int | None, typer.Option(help="MoE layers to look ahead")] = None,
    prefetch_count: Annotated[int | None, typer.Option(help="suggested experts per visit")] = None,
    staging: Annotated[int | None, typer.Option(help="staging buffers beside the cache")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="format of the experts, e.g. hqq-2bit")] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="profile name or file: also model the time")
    ] = None,
    model_shape: Annotated[
        str | None, typer.Option("--model-shape", help="size the experts as this model's, e.g. mixtral-8x7b")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="as if this many of the trace's requests were decoded together")
    ] = None,
    arrival_rate: Annotated[
        float | None, typer.Option("--arrival-rate", help="with --batch: mean requests that come per decode step")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="of --arrival-rate; 0 without")] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="also write every decision to this Parquet file")
    ] = None,
    steps: Annotated[
        Path | None, typer.Option("--steps", help="also write each step's counts and times to this Parquet file")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="also write a timeline (.json or .json.gz) for Perfetto")
    ] = None,
    timeline_steps: Annotated[
        str | None, typer.Option(help="steps of the timeline, A:B by running number; default: 4 in the middle")
    ] = None,
    bounds: Annotated[
        bool | None,
        typer.Option(
            "--bounds/--no-bounds", help="also compute the best any plan could do; default: up to 20 M lookups"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Replay a plan on a trace and count hits, loads and bytes; with --hardware, model the time.

    --batch asks what continuous batching would do: at most N requests in flight, first come first served, each prompt
    in a step of its own; docs/design.md says what that assumes.

    --events keeps the decisions themselves; docs/policies.md describes the columns. --timeline opens in
    ui.perfetto.dev or chrome://tracing.

    Example: tracekit replay demo.trace --policy lru --capacity 4/layer --hardware rtx3060 --model-shape mixtral-8x7b
    """
    from engine.replay.event_log import EventLog
    from engine.replay.replay import replay
    from experiments.cli import console
    from experiments.cli.plans import plan_from_options
    from tracekit import Trace
    from tracekit.demand import step_starts
    from tracekit.durable import check_place
    from tracekit.errors import PlanError

    if arrival_rate is not None and batch is None:
        raise PlanError("--arrival-rate says when requests come to a batch: give --batch too")
    if seed is not None and arrival_rate is None:
        raise PlanError("--seed is of the arrivals: give --arrival-rate too")
    chosen = plan_from_options(
        plan,
        capacity=capacity,
        policy=policy,
        profile=profile,
        eviction_artefact=eviction_artefact,
        prefetch_artefact=prefetch_artefact,
        prefetch=prefetch,
        prefetch_distance=prefetch_distance,
        prefetch_count=prefetch_count,
        staging=staging,
        weights=weights,
    )
    for path in (steps, timeline):
        if path is not None:
            check_place(path)
    opened = Trace.open(trace)
    if batch is not None:
        from tracekit.batched import batched

        opened = batched(opened, batch, arrival_rate=arrival_rate, seed=seed or 0)
    if timeline is not None and hardware is None:
        raise PlanError("--timeline shows time: give --hardware too")
    if timeline_steps is not None and timeline is None:
        raise PlanError("--timeline-steps is of the timeline: give --timeline too")
    window = None
    if timeline is not None:
        from engine.replay.chrome_trace import save_timeline, timeline_window

        window = timeline_window(timeline_steps, len(step_starts(opened.step)) - 1)
    listeners, finished = [], []
    with ExitStack() as stack:
        if events is not None:
            listeners.append(stack.enter_context(EventLog(events, opened, chosen)).append)
        if steps is not None:
            from engine.replay.step_log import write_steps

            finished.append(lambda done: write_steps(steps, opened, done))
        if timeline is not None:
            finished.append(lambda done: save_timeline(timeline, opened, done, chosen, hardware))
        result = replay(
            opened,
            chosen,
            hardware,
            model_shape=model_shape,
            bounds=bounds,
            allow_fitted=allow_fitted,
            progress=True,
            on_events=every(listeners),
            on_done=every(finished),
            log=window,
        )
    if json:
        console.emit_json(result.to_dict())
        return
    from experiments.cli.results import result_rows

    console.table(str(trace), ["what", "value"], result_rows(result))
    for warning in result.warnings:
        console.say(f"warning: {warning}")


def every(functions: Sequence[Callable[..., object]]) -> Callable[..., None] | None:
    """One function that calls all of these; None if there is none."""

    def call(*arguments: object) -> None:
        for function in functions:
            function(*arguments)

    return call if functions else None
