"""`tracekit replay`: a plan's hits, bytes and time on a recorded trace."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from experiments.cli.counts import replay_cells

if TYPE_CHECKING:
    from engine.hardware import HardwareProfile
    from engine.replay.passes import Replayed
    from policies.events import Events
    from policies.tiered_cache import AnyCache
    from tracekit.demand import Demand


def command(
    trace: Annotated[
        Path | None, typer.Argument(help="a trace directory; prior:MODEL where there is none (docs/sizing.md)")
    ] = None,
    plan: options.PlanFile = None,
    policy: options.Policy = None,
    profile: Annotated[
        Path | None, typer.Option(help="for --policy static: a trace, or counts, whose popular experts are kept")
    ] = None,
    eviction_artefact: Annotated[
        Path | None, typer.Option(help="for --policy learned: what tracekit fit wrote")
    ] = None,
    prefetch_artefact: Annotated[
        Path | None, typer.Option(help="for --prefetch learned: what tracekit fit wrote")
    ] = None,
    allow_fitted: Annotated[
        bool,
        typer.Option(
            "--allow-fitted", help="replay also what a predictor or placement was made from; the result is marked"
        ),
    ] = False,
    capacity: options.Capacity = None,
    split: Annotated[
        str | None, typer.Option(help="even or curve: how the capacity's slots are shared by layers; over the plan's")
    ] = None,
    split_from: Annotated[Path | None, typer.Option(help="for --split curve: the trace that says what helps")] = None,
    pinned: Annotated[
        str | None,
        typer.Option(
            help='experts that never leave: "layers 0-5", popular:2/layer, FILE.placement.toml; over the plan\'s'
        ),
    ] = None,
    pinned_profile: Annotated[
        Path | None, typer.Option(help="for --pinned popular: a trace, or counts, that says what is popular")
    ] = None,
    prefetch: options.Prefetch = None,
    prefetch_distance: options.PrefetchDistance = None,
    prefetch_count: options.PrefetchCount = None,
    prefetch_wrap: Annotated[
        bool | None,
        typer.Option("--prefetch-wrap", help="the last layers prefetch for the first ones of the next step"),
    ] = None,
    staging: Annotated[int | None, typer.Option(help="staging buffers beside the cache")] = None,
    routing_policy: options.RoutingPolicy = None,
    routing_set: options.RoutingSet = None,
    routing_profile: options.RoutingProfile = None,
    miss: options.Miss = None,
    miss_share: options.MissShare = None,
    admission: options.Admission = None,
    admit_per_step: options.AdmitPerStep = None,
    weights: options.Weights = None,
    hardware: Annotated[str | None, typer.Option(help="profile name or file: also model the time")] = None,
    engine: options.Engine = None,
    model_shape: Annotated[str | None, typer.Option(help="size the experts as this model's, e.g. mixtral-8x7b")] = None,
    reshape: options.Reshape = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="as if this many of the trace's requests were decoded together")
    ] = None,
    host_memory: options.HostMemory = None,
    disk_speed: options.DiskSpeed = None,
    arrival_rate: Annotated[
        float | None, typer.Option(help="with --batch: mean requests that come per decode step")
    ] = None,
    tokens: options.PriorTokens = None,
    prompt_tokens: options.PriorPrompt = None,
    requests: options.PriorRequests = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of --arrival-rate, --spread or prior:; 0 without")] = None,
    domain_by: Annotated[
        str | None, typer.Option(help="label: requests' labels choose among a placement's domains; over the plan's")
    ] = None,
    detect: Annotated[
        int | None, typer.Option(min=1, help="instead: the routing of so many of a request's first tokens does")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="for --domain-by label: prompts with their domain, where the trace has none")
    ] = None,
    warm: Annotated[
        str | None,
        typer.Option(
            help="keep, reset (each request finds an empty cache), or what the cache begins with: a saved one, "
            "or a trace at whose end the plan leaves it; over the plan's"
        ),
    ] = None,
    save_warm: options.SaveWarm = None,
    reset: Annotated[str | None, typer.Option(hidden=True, help="it is --warm reset now")] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=0, help="this many tokens fill the cache and are not counted")
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="instead of a trace: a CSV file of cells of which only counts are known")
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(help="time the decisions in this Parquet file, as --events writes it, instead of a plan's"),
    ] = None,
    spread: Annotated[str, typer.Option(help="of --counts: which lookups miss, even or random")] = "even",
    events: Annotated[Path | None, typer.Option(help="also write every decision to this Parquet file")] = None,
    steps: Annotated[
        Path | None, typer.Option(help="also write each step's counts and times to this Parquet file")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="also write a timeline (.json or .json.gz) for Perfetto")
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
    sensitivities: Annotated[
        bool, typer.Option("--sensitivities", help="also say what a better link, device, host or cache would gain")
    ] = False,
    against_recorded: Annotated[
        bool,
        typer.Option("--against-recorded", help="also hold each lookup against what the traced engine's cache held"),
    ] = False,
    json: options.Json = False,
) -> None:
    """Replay a plan on a trace and count hits, loads and bytes; with --hardware, model the time.

    --batch asks what continuous batching would do: at most N requests in flight, first come first served, each prompt
    in a step of its own; docs/design.md says what that assumes.

    --warm and --warm-up are the protocols of published simulators (docs/howto.md).

    --events keeps the decisions themselves, and beside them (F.choices.parquet) what a routing policy altered;
    docs/policies.md describes the columns. --timeline opens in ui.perfetto.dev or chrome://tracing.

    --routing-policy alters recorded choices by what the cache holds: a first-order estimate, as the result says.

    --decisions times what another engine, or another run, decided; docs/simulator.md says what the file holds.

    --counts times published counts whose routing is not known; docs/simulator.md says how they are spread over visits.

    prior:MODEL in place of a trace draws routing from what is published of models like it: three results, a prior.

    Example: tracekit replay demo.trace --policy lru --capacity 4/layer --hardware rtx3060 --model-shape mixtral-8x7b
    """
    if counts is not None:
        asked = {
            **{"a trace": trace, "--policy": policy, "--profile": profile, "--capacity": capacity, "--steps": steps},
            **{"--prefetch": prefetch, "--prefetch-distance": prefetch_distance, "--prefetch-count": prefetch_count},
            **{"--staging": staging, "--batch": batch, "--events": events, "--timeline": timeline, "--bounds": bounds},
            **{"--eviction-artefact": eviction_artefact, "--prefetch-artefact": prefetch_artefact},
            **{"--timeline-steps": timeline_steps, "--arrival-rate": arrival_rate, "--decisions": decisions},
            **{"--warm": warm, "--warm-up": warm_up, "--prefetch-wrap": prefetch_wrap, "--save-warm": save_warm},
            **{"--domain-by": domain_by, "--detect": detect, "--labels": labels},
            **{"--miss": miss, "--miss-share": miss_share},
            **{"--admission": admission, "--admit-per-step": admit_per_step},
            "--against-recorded": against_recorded or None,
            "--sensitivities": sensitivities or None,
            **{"--reshape": reshape, "--host-memory": host_memory, "--disk-speed": disk_speed},
            **{"--routing-policy": routing_policy, "--routing-set": routing_set},
            "--routing-profile": routing_profile,
            **{"--tokens": tokens, "--prompt-tokens": prompt_tokens, "--requests": requests},
        }
        options.refuse_decided("--counts", asked)
        replay_cells(
            counts,
            plan=plan,
            weights=weights,
            hardware=hardware,
            engine=engine,
            model_shape=model_shape,
            spread=spread,
            seed=seed,
            json=json,
        )
        return
    from engine.decisions.saving import held_by
    from engine.plan.placement import save_placement
    from engine.replay.against_recorded import AgainstRecorded
    from engine.replay.choice_log import ChoiceLog, choices_path
    from engine.replay.chrome_trace import save_timeline, timeline_window
    from engine.replay.event_log import EventLog
    from engine.replay.replay import replay, warm_up_steps
    from engine.replay.step_log import write_steps
    from experiments.cli.plans import given_decisions, plan_from_options
    from experiments.cli.results import agreement_rows, is_calibrated, result_rows
    from experiments.prior import model_of
    from experiments.statistics.request_shares import RequestShares
    from experiments.statistics.speeds import MODELLED, Ends, basis, interval_words, speed_interval
    from tracekit.batched import batched
    from tracekit.demand import step_starts
    from tracekit.durable import check_place
    from tracekit.errors import PlanError
    from tracekit.trace import Trace

    if reset is not None:
        raise PlanError("--reset request is now --warm reset")
    if trace is None:
        raise PlanError("replay what? give a trace directory, or --counts and a CSV file")
    if arrival_rate is not None and batch is None:
        raise PlanError("--arrival-rate says when requests come to a batch: give --batch too")
    model = model_of(trace)
    options.refuse_without_prior(model, tokens, prompt_tokens, requests)
    if seed is not None and arrival_rate is None and model is None:
        raise PlanError("--seed is of the arrivals: give --arrival-rate too")
    if engine is not None and hardware is None:
        raise PlanError("--engine says what time a machine's software takes: give --hardware too")
    if decisions is None:
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
            prefetch_wrap=prefetch_wrap,
            warm=warm,
            domain_by=domain_by,
            detect=detect,
            labels=labels,
            split=split,
            split_from=split_from,
            pinned=pinned,
            pinned_profile=pinned_profile,
            routing_policy=routing_policy,
            routing_set=routing_set,
            routing_profile=routing_profile,
            miss=miss,
            miss_share=miss_share,
            admission=admission,
            admit_per_step=admit_per_step,
        )
    else:
        asked = {
            **{"--policy": policy, "--profile": profile, "--capacity": capacity, "--prefetch": prefetch},
            **{"--prefetch-distance": prefetch_distance, "--prefetch-count": prefetch_count, "--staging": staging},
            **{"--eviction-artefact": eviction_artefact, "--prefetch-artefact": prefetch_artefact},
            **{"--prefetch-wrap": prefetch_wrap, "--warm": warm, "--save-warm": save_warm, "--split": split},
            **{"--domain-by": domain_by, "--detect": detect, "--labels": labels},
            **{"--split-from": split_from, "--pinned": pinned, "--pinned-profile": pinned_profile},
            **{"--routing-policy": routing_policy, "--routing-set": routing_set},
            "--routing-profile": routing_profile,
            **{"--miss": miss, "--miss-share": miss_share},
            **{"--admission": admission, "--admit-per-step": admit_per_step},
        }
        options.refuse_decided("--decisions", asked)
    machine = _machine(hardware, engine, host_memory, disk_speed)
    if model is not None:
        from experiments.cli import prior
        from experiments.prior import asked_for

        if chosen.routing.alters:
            raise PlanError(
                f"routing policy {chosen.routing.policy!r} reads gates, and a prior draws choices alone: replay a "
                "recorded trace, or without the policy"
            )
        asked = {
            **{"--model-shape": model_shape, "--reshape": reshape, "--arrival-rate": arrival_rate, "--warm": warm},
            **{"--save-warm": save_warm, "--domain-by": domain_by, "--detect": detect, "--labels": labels},
            **{"--decisions": decisions, "--events": events, "--steps": steps, "--timeline": timeline},
            **{"--timeline-steps": timeline_steps, "--against-recorded": against_recorded or None},
        }
        options.refuse_decided("prior:", asked)
        prior.replay(
            asked_for(model, tokens=tokens, prompt_tokens=prompt_tokens, requests=requests, batch=batch, seed=seed),
            chosen,
            machine,
            json=json,
            batch=batch,
            bounds=bounds,
            sensitivities=sensitivities,
            warm_up=warm_up or 0,
        )
        return
    options.check_placement("--save-warm", save_warm)
    for path in (steps, timeline):
        if path is not None:
            check_place(path)
    opened = Trace.open(trace)
    if batch is not None:
        opened = batched(opened, batch, arrival_rate=arrival_rate, seed=seed or 0)
    given = None
    if decisions is not None:
        given = given_decisions(decisions, opened, plan, weights)
        chosen = given.plan
    if timeline is not None and hardware is None:
        raise PlanError("--timeline shows time: give --hardware too")
    if timeline_steps is not None and timeline is None:
        raise PlanError("--timeline-steps is of the timeline: give --timeline too")
    window = None if timeline is None else timeline_window(timeline_steps, len(step_starts(opened.step)) - 1)

    ends: list[Ends | None] = []

    def write_tables(done: "Replayed") -> None:
        if done.timeline is not None:
            shares = RequestShares.of(opened)
            uncounted = warm_up_steps(opened, shares.steps, warm_up or 0)
            ends.append(speed_interval(shares, done.step_ns, 1.0, warm_up=uncounted))
        if steps is not None:
            write_steps(steps, opened, done)
        if timeline is not None and machine is not None:
            save_timeline(timeline, opened, done, chosen, machine.name)

    def save(cache: "AnyCache") -> None:
        assert save_warm is not None
        save_placement(held_by(cache, chosen, opened.manifest.experts_per_layer, opened), save_warm)

    if against_recorded and chosen.precision is not None:
        raise PlanError(
            "--against-recorded is of an engine with one copy of each expert: a plan without precision tiers"
        )
    recorded = AgainstRecorded(opened) if against_recorded else None
    with ExitStack() as stack:
        log = None if events is None else stack.enter_context(EventLog(events, opened, chosen))
        choices = None
        if events is not None and chosen.routing.alters and given is None:
            choices = stack.enter_context(ChoiceLog(choices_path(events), opened))

        def on_events(demand: "Demand", decided: "Events") -> None:
            if log is not None:
                log.append(demand, decided)
            if recorded is not None:
                recorded.compare(demand, decided)

        result = replay(
            opened,
            chosen,
            machine,
            model_shape=model_shape,
            reshape=reshape,
            bounds=bounds,
            sensitivities=sensitivities,
            allow_fitted=allow_fitted,
            decisions=given,
            warm_up=warm_up or 0,
            progress=True,
            on_events=None if log is None and recorded is None else on_events,
            on_done=write_tables,
            on_end=None if save_warm is None else save,
            on_choices=None if choices is None else choices.add,
            log=window,
        )
    between = None
    if result.time is not None and result.time.tokens_per_second is not None and ends and ends[0] is not None:
        between = (ends[0][0] / result.time.scale, ends[0][1] / result.time.scale)
    if json:
        found: dict[str, object] = {} if recorded is None else {"against_recorded": recorded.agreement}
        if result.time is not None:
            found |= {"basis": basis(calibrated=is_calibrated(result)), "tokens_per_second_interval": between}
        console.emit_json({**result.to_dict(), **found})
        return
    rows = result_rows(result, interval_words(between))
    if recorded is not None:
        rows += agreement_rows(recorded.agreement)
    console.table(str(trace), ["what", "value"], rows)
    if result.time is not None and not is_calibrated(result):
        console.tell(f"All times are {MODELLED}; the interval is over requests. tracekit calibrate measures a machine.")
    console.warn(result.warnings)


def _machine(
    hardware: str | None, engine: str | None, host_memory: str | None, disk_speed: str | None
) -> "HardwareProfile | None":
    """The machine that is named, with its experts on disk where its speed, or the host's cache, is given."""
    from engine.hardware import load_hardware
    from engine.plan.capacity import parse_memory
    from experiments.recommend.residence import HostMemory, with_disk
    from tracekit.errors import PlanError

    room, rate = parse_memory(host_memory, "--host-memory"), options.rate(disk_speed)
    if hardware is None:
        if room is not None or rate is not None:
            raise PlanError("--disk-speed and --host-memory are of a machine: give --hardware too")
        return None
    machine = load_hardware(hardware, engine)
    return machine if room is None and rate is None else with_disk(machine, HostMemory.of(machine, room, rate))
