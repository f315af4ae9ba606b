"""`tracekit validate`: a plan in the engine and in the simulator, compared."""

from pathlib import Path
from typing import Annotated

import typer

from tracekit.errors import TraceError


def command(
    model: Annotated[str, typer.Argument(help="directory of the model, or its hub name if it is cached here")],
    prompts: Annotated[Path, typer.Option(help='JSON lines: {"id", "prompt"} or {"id", "messages"}')],
    plan: Annotated[Path | None, typer.Option("--plan", help="a plan file (TOML)")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="profile that the simulator assumes; without it, this machine is measured first")
    ] = None,
    capacity: Annotated[str | None, typer.Option("--capacity", help="instead of, or over, the plan's")] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="instead of, or over, the plan's")] = None,
    prefetch: Annotated[str | None, typer.Option("--prefetch", help="instead of, or over, the plan's")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="how experts are stored: bf16, hqq-4bit, hqq-2bit, ...")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="tokens to generate per prompt")] = 32,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    host: Annotated[str, typer.Option("--host", help="where experts lie: memory or disk")] = "memory",
    slabs: Annotated[
        Path | None, typer.Option("--slabs", help="with --host disk: their directory, written if it is not there yet")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="device memory for weights and slots, e.g. 8GiB; default: what is free"),
    ] = None,
    emulate_link: Annotated[
        float | None, typer.Option("--emulate-link", help="slow copies down to this many GB/s (CPU only)")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="fail above this median error of time per token, e.g. 0.15")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="keep the engine's own trace here")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Run a plan in the engine and in the simulator; compare decisions, tokens and time. Exit code 1 if it fails.

    Example: tracekit validate ./mixtral-mini --capacity 4/layer --prefetch gate --prompts prompts.jsonl
    """
    import msgspec

    from engine.hardware import load_hardware
    from experiments.cli import console
    from experiments.cli.links import emulated_link
    from experiments.cli.plans import plan_from_options
    from tracekit.recorder.prompts import read_prompts

    if output is not None:
        check_output(output)
    chosen = plan_from_options(plan, capacity=capacity, policy=policy, prefetch=prefetch, weights=weights)
    requests = read_prompts(prompts)
    profile = None if hardware is None else load_hardware(hardware)
    link = emulated_link(emulate_link)
    from engine.runtime.memory import fit_checkpoint, parse_memory
    from experiments.validate import validate

    chosen = fit_checkpoint(
        model, chosen, dtype=dtype, device=device, limit=parse_memory(memory), on_disk=host == "disk"
    )

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
        threshold=threshold,
        keep_trace=output,
        progress=lambda text: typer.echo(f"{text} ...", err=True),
    )
    if json:
        console.emit_json(msgspec.to_builtins(result))
    else:
        time = result.time
        rows = [
            ("decision log entries", str(result.decisions.entries)),
            ("decision logs", "identical" if result.decisions.identical else str(result.decisions.first_difference)),
            ("tokens compared", str(result.tokens.compared)),
            ("tokens", "identical" if result.tokens.identical else "DIFFERENT"),
            ("hardware profile", time.hardware + (" (measured just now)" if time.calibrated_here else "")),
            ("link", "this machine's" if time.emulated_link is None else f"emulated, {time.emulated_link}"),
            ("experts lie", result.host),
            ("decode steps timed", str(time.steps)),
            ("tokens/s, engine", f"{time.measured_tokens_per_second:.2f}"),
            ("tokens/s, simulator", f"{time.simulated_tokens_per_second:.2f}"),
            ("time per token, median error", f"{100 * time.step_error_median:.1f} %"),
            ("time per layer, median error", f"{100 * time.layer_error_median:.1f} %"),
            ("total time, error", f"{100 * time.total_error:+.1f} %"),
        ]
        console.table(f"Validation of {result.model}", ["what", "value"], rows)
        for warning in result.warnings:
            typer.echo(f"warning: {warning}")
        typer.echo(("passed: " if result.passed else "FAILED: ") + result.verdict)
    if not result.passed:
        raise typer.Exit(1)


def check_output(output: Path) -> None:
    """Refuse at once, before anything is measured, what could not be written in the end."""
    if output.exists():
        raise TraceError(f"{output} exists, and validate writes a new trace: choose another --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise TraceError(f"cannot write {output}: there is no directory {output.parent}")
