"""`tracekit validate`: a plan in the engine and in the simulator, compared."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from tracekit.errors import PlanError, TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.validation.comparison import Prefetches


def command(
    context: typer.Context,
    model: options.Model,
    prompts: Annotated[Path | None, typer.Option(help=options.PROMPTS)] = None,
    routing: Annotated[
        Path | None, typer.Option(help="instead of prompts: a trace that says which experts are chosen")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="with --routing: only the model's config.json is read")
    ] = False,
    max_steps: Annotated[int | None, typer.Option(min=1, help="with --routing: so many steps of the trace")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of sampling; with --routing: of weights and tokens")] = 0,
    plan: options.PlanFile = None,
    hardware: Annotated[
        str | None, typer.Option(help="profile that the simulator assumes; without it, this machine is measured first")
    ] = None,
    engine: options.Engine = None,
    capacity: options.Capacity = None,
    policy: options.Policy = None,
    prefetch: options.Prefetch = None,
    prefetch_distance: options.PrefetchDistance = None,
    prefetch_count: options.PrefetchCount = None,
    routing_policy: options.RoutingPolicy = None,
    routing_set: options.RoutingSet = None,
    routing_profile: options.RoutingProfile = None,
    miss: options.Miss = None,
    admission: options.Admission = None,
    admit_per_step: options.AdmitPerStep = None,
    weights: options.Weights = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="tokens to generate per prompt")] = 32,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    host: options.Host = None,
    slabs: options.Slabs = None,
    memory: options.Memory = None,
    emulate_link: options.EmulateLink = None,
    prefill_chunk: options.PrefillChunk = None,
    runs: Annotated[
        int, typer.Option(min=1, max=1000, help="times that the engine runs; a step's time is the median over them")
    ] = 3,
    threshold: Annotated[
        float, typer.Option(help="fail where tokens/s, or the time of a token in the median, is off by more")
    ] = 0.5,
    tolerance: Annotated[
        float, typer.Option(help="warn where tokens/s, or the time of a token in the median, is off by more")
    ] = 0.15,
    output: Annotated[Path | None, typer.Option(help="keep the engine's own trace here")] = None,
    save_warm: options.SaveWarm = None,
    report: Annotated[Path | None, typer.Option(help="write a page that shows both sides (HTML)")] = None,
    json: options.Json = False,
) -> None:
    """Run a plan in the engine and in the simulator; compare decisions, tokens and time.

    It passes if decisions and tokens are alike on both sides, with a warning if time is off by more than --tolerance.
    It fails, with exit code 1, if they differ, or if time is off by more than --threshold.

    A plan with a routing policy or precision tiers makes another model: its tokens are compared with nothing, and it is
    said how far a first-order estimate, from the unaltered model's gates, is from what the engine did.

    With --routing and --random-weights, a model directory needs no weights: its shapes are filled with random numbers
    and a recorded trace chooses the experts, so that decisions and time are compared without the checkpoint.

    Example: tracekit validate ./mixtral-mini --capacity 4/layer --prefetch gate --prompts prompts.jsonl
    """
    from engine.hardware.profile import load_hardware
    from experiments.cli.plans import plan_from_options
    from tracekit.durable import check_place
    from tracekit.recorder.prompts import read_prompts
    from tracekit.recorder.sampling import Sampling

    if output is not None and output.exists():
        raise TraceError(f"{output} exists, and validate writes a new trace: choose another --output, or remove it")
    for path in (output, report):
        if path is not None:
            check_place(path)
    options.check_placement("--save-warm", save_warm)
    chosen = plan_from_options(
        plan,
        capacity=capacity,
        policy=policy,
        prefetch=prefetch,
        prefetch_distance=prefetch_distance,
        prefetch_count=prefetch_count,
        routing_policy=routing_policy,
        routing_set=routing_set,
        routing_profile=routing_profile,
        miss=miss,
        admission=admission,
        admit_per_step=admit_per_step,
        weights=weights,
    )
    host = host or chosen.serve.host or "memory"
    sampling = Sampling.asked(temperature, top_p, seed)
    if routing is not None and sampling is not None:
        raise PlanError("a trace's routing says which tokens come: without --temperature and --top-p")
    check_inputs(prompts, routing, random_weights=random_weights, host=host, slabs=slabs, output=output)
    if engine is not None and hardware is None:
        raise PlanError("--engine is of a hardware profile: give --hardware too; without it this machine is measured")
    requests = [] if prompts is None else read_prompts(prompts)
    profile = None if hardware is None else load_hardware(hardware, engine)
    link = options.emulated_link(emulate_link)
    options.check_run(chosen, profile, dtype, device)
    from engine.plan.capacity import parse_memory
    from engine.runtime.memory import fit_checkpoint
    from experiments.validation.forced import validate_routing
    from experiments.validation.orders import order_rows
    from experiments.validation.validate import validate
    from experiments.validation.verdict import WORDS, signed
    from tracekit.recorder.models import parse_device
    from tracekit.trace import Trace

    limit, device = parse_memory(memory), str(parse_device(device))
    chosen = fit_checkpoint(
        model,
        chosen,
        dtype=dtype,
        device=device,
        limit=limit,
        on_disk=host == "disk",
        quantising=not random_weights and (slabs is None or not slabs.exists()),
    )

    def progress(text: str) -> None:
        console.say(f"{text} ...")

    if routing is not None:
        result = validate_routing(
            model,
            chosen,
            Trace.open(routing),
            hardware=profile,
            steps=max_steps,
            seed=seed,
            dtype=dtype,
            device=device,
            emulate_link=link,
            runs=runs,
            threshold=threshold,
            tolerance=tolerance,
            save_warm=save_warm,
            progress=progress,
        )
    else:
        result = validate(
            model,
            chosen,
            requests,
            hardware=profile,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            emulate_link=link,
            host=host,
            slabs=slabs,
            prefill_chunk=prefill_chunk,
            runs=runs,
            threshold=threshold,
            tolerance=tolerance,
            sampling=sampling,
            keep_trace=output,
            save_warm=save_warm,
            progress=progress,
        )
    if report is not None:
        from experiments.validation.page import write

        write(report, result, command_line(context))
    if json:
        console.emit_json(result)
    else:
        time = result.time
        rows = [
            ("decision log entries", str(result.decisions.entries)),
            ("decision logs", "identical" if result.decisions.identical else str(result.decisions.first_difference)),
            ("tokens compared", str(result.tokens.compared)),
            ("tokens", token_verdict(result.tokens.compared, identical=result.tokens.identical)),
            ("hardware profile", time.hardware + (" (measured just now)" if time.calibrated_here else "")),
            ("link", "this machine's" if time.emulated_link is None else f"{time.emulated_link}, on both sides"),
            ("experts lie", result.host),
            ("decode steps timed", str(time.steps)),
            ("tokens/s, engine", f"{time.measured_tokens_per_second:.2f}{between(time.measured_runs)}"),
            ("tokens/s, simulator", f"{time.simulated_tokens_per_second:.2f}{between(time.simulated_runs)}"),
            ("tokens/s, error", signed(time.tokens_per_second_error)),
            ("p99 of a token, engine / simulator", f"{time.measured_p99_ms:.2f} / {time.simulated_p99_ms:.2f} ms"),
            ("p99 of a token, error", signed(time.p99_error)),
            *order_rows(result.routing),
            *fate_rows(result.prefetches),
            ("time per token, median error", f"{100 * time.step_error_median:.1f} %"),
            ("time per layer, median error", f"{100 * time.layer_error_median:.1f} %"),
            ("total time, error", signed(time.total_error)),
        ]
        console.table(f"Validation of {result.model}", ["what", "value"], rows)
        console.warn(result.warnings)
        console.tell(f"{WORDS[result.judged.outcome]}: {result.verdict}")
        if result.routing is not None:
            console.tell(result.routing.sentence())
        if result.prior is not None:
            console.tell(result.prior.sentence())
    if not result.passed:
        raise typer.Exit(1)


def between(rates: "Sequence[float]") -> str:
    """How far repeated runs are apart; nothing of a single one."""
    return f" (of {len(rates)} runs {min(rates):.2f} to {max(rates):.2f})" if len(rates) > 1 else ""


def fate_rows(prefetches: "Prefetches | None") -> list[tuple[str, str]]:
    """What became of prefetches on both sides; nothing where there were none."""
    if prefetches is None or not any(prefetches.measured.values()):
        return []
    return [
        (f"prefetches, {fate}", f"{count} in the engine, {prefetches.simulated[fate]} simulated")
        for fate, count in prefetches.measured.items()
    ]


def token_verdict(compared: int, *, identical: bool) -> str:
    """Whether tokens agreed, where any were compared."""
    return "not compared" if compared == 0 else "identical" if identical else "DIFFERENT"


def check_inputs(
    prompts: Path | None,
    routing: Path | None,
    *,
    random_weights: bool,
    host: str,
    slabs: Path | None,
    output: Path | None,
) -> None:
    """Refuse options that do not go together."""
    if (prompts is None) == (routing is None):
        raise PlanError("validate runs --prompts FILE, or a trace's routing: --routing T.trace --random-weights")
    if (routing is not None) != random_weights:
        raise PlanError(
            "a trace's routing runs on random weights, and they on nothing else: give --routing T.trace "
            "and --random-weights together"
        )
    if routing is not None and (host != "memory" or slabs is not None or output is not None):
        raise PlanError(
            "random weights lie in memory and their routing is a trace already: without --host, --slabs and --output"
        )


def command_line(context: typer.Context) -> str:
    """The command that was given, as it can be given again."""
    words = ["tracekit", "validate"]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or value == parameter.default:
            continue
        for one in value if isinstance(value, list | tuple) else [value]:  # an option that may be given again
            if parameter.param_type_name == "option":
                words.append(parameter.opts[0])
            if one is not True:
                words.append(str(one))
    return shlex.join(words)
