"""`tracekit info`: what a trace holds and what it is like."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tracekit.stats import TraceStats


def command(
    trace: Annotated[Path, typer.Argument(help="a trace directory")],
    verify: Annotated[
        bool, typer.Option("--verify", help="check every digest and value, not only what is read anyway")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Say what a trace holds, what it demands, how evenly, and how much neighbouring tokens share.

    Example: tracekit info prompts.trace --verify
    """
    import msgspec

    from experiments.cli import console
    from tracekit.stats import describe
    from tracekit.trace import Trace

    stats = describe(Trace.open(trace, verify=verify))
    if json:
        console.emit_json({"trace": str(trace), **msgspec.to_builtins(stats)})
        return
    console.table(str(trace), ["what", "value"], [list(row) for row in _rows(stats)])
    for note in stats.notes:
        typer.echo(f"note: {note}")
    for warning in stats.warnings:
        typer.echo(f"warning: {warning}")


def _rows(stats: "TraceStats") -> list[tuple[str, str]]:
    fewest, most = stats.experts_per_layer
    rows = [
        ("model", stats.model),
        ("source", stats.source),
        ("recorded", ", ".join(["routing", *stats.recorded])),
        ("tokens", f"{stats.tokens} ({stats.prefill_tokens} prefill, {stats.decode_tokens} decode)"),
        ("requests", str(stats.requests)),
        ("steps", f"{stats.steps} ({stats.decode_steps} decode)"),
        ("MoE layers", str(stats.layers)),
        ("experts per layer", f"{fewest}" if fewest == most else f"{fewest} to {most}"),
        ("top-k", str(stats.top_k)),
        ("lookups", str(stats.lookups)),
        ("distinct experts per decode visit", _number(stats.distinct_per_decode_visit)),
        ("distinct experts per prefill visit", _number(stats.distinct_per_prefill_visit)),
        ("experts used", f"{stats.experts_used} of {stats.experts_total}"),
    ]
    if stats.expert_bytes is not None:
        small, large = stats.expert_bytes
        rows.append(("one expert", _mib(small) if small == large else f"{_mib(small)} to {_mib(large)}"))
        rows.append(("all experts", _mib(stats.model_expert_bytes)))
    where = "" if stats.load_entropy_min_layer is None else f" (layer {stats.load_entropy_min_layer})"
    rows += [
        (
            "token cycle: one decode token's demand",
            f"{stats.token_cycle_experts:.1f} experts, {_mib(stats.token_cycle_bytes)}",
        ),
        ("load entropy, mean over layers", _number(stats.load_entropy_mean)),
        ("load entropy, least even layer", _number(stats.load_entropy_min) + where),
        ("overlap of consecutive tokens", _percent(stats.overlap)),
        ("overlap of any two tokens", _percent(stats.overlap_chance)),
    ]
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _mib(size: int | None) -> str:
    return "bytes unknown" if size is None else f"{size / 2**20:.1f} MiB"
