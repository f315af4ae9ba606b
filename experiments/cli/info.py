"""`tracekit info`: what a trace holds and what it is like."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from experiments.cli.console import number, percent
from tracekit.errors import PlanError, TraceError, did_you_mean
from tracekit.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from tracekit.stats import TraceStats


def command(
    trace: Annotated[
        str,
        typer.Argument(help="a trace; or a model: a directory, config.json, GGUF file or the name of a shipped shape"),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="check every digest and value, not only what is read anyway")
    ] = False,
    hardware: Annotated[
        list[str] | None, typer.Option(help="of a model: this machine, repeatable; all shipped ones if not given")
    ] = None,
    engine: options.Engine = None,
    weights: options.Weights = None,
    context: Annotated[int, typer.Option(min=1, max=1 << 24, help="of a model: tokens of each sequence")] = 4096,
    batch: Annotated[int, typer.Option(min=1, max=1 << 16, help="of a model: sequences at once")] = 1,
    kv_cache: Annotated[
        str | None, typer.Option(help="of a model: format of keys and values, bf16, fp8, q8_0, ...")
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what a trace holds, what it demands, how evenly, with how much locality, and what to be wary of.

    Of a model: what it takes in which format, where it fits and how fast it could be; exit code 1 if nowhere.

    docs/traces.md explains the figures; --json has all of them, by layer.

    Example: tracekit info prompts.trace --verify
    Example: tracekit info gpt-oss-20b --hardware rtx3060 --weights mxfp4
    """
    if _is_model(trace):
        from experiments.cli.info_model import tell_model

        if verify:
            raise PlanError("--verify is of a trace's digests, and this is a model: leave it out")
        code = tell_model(
            trace,
            hardware=hardware or [],
            engine=engine,
            weights=weights,
            context=context,
            batch=batch,
            kv_cache=kv_cache,
            json=json,
        )
        raise typer.Exit(code)
    import msgspec

    from engine.shapes import shape_names
    from tracekit.stats import describe
    from tracekit.trace import Trace

    bare = not Path(trace).exists() and Path(trace).name == trace and not trace.endswith(".trace")
    if bare and (hint := did_you_mean(trace, shape_names())):
        raise TraceError(f"no trace at {trace}, and no shipped model of that name{hint}")
    if hardware or engine or weights or kv_cache:
        raise PlanError(
            "--hardware, --engine, --weights and --kv-cache are of a model, and this is a trace: tracekit replay"
        )
    stats = describe(Trace.open(trace, verify=verify))
    if json:
        console.emit_json({"trace": str(trace), **msgspec.structs.asdict(stats)})
        return
    console.table(str(trace), ["what", "value"], [list(row) for row in _rows(stats)])
    for note in stats.notes:
        console.tell(f"note: {note}")
    console.warn(stats.warnings)


def _is_model(name: str) -> bool:
    """Whether `name` is a model and no trace: a shipped shape, a file, or a directory with a model's config.json."""
    from engine.shapes import shape_names

    path = Path(name)
    if path.is_dir():
        return not (path / MANIFEST_NAME).exists() and (path / "config.json").exists()
    return name.endswith((".gguf", ".json", ".toml")) or (not path.exists() and name in shape_names())


def _rows(stats: "TraceStats") -> list[tuple[str, str]]:
    fewest, most = stats.experts_per_layer
    rows = [
        ("model", stats.model),
        ("source", stats.source),
        ("recorded", ", ".join(["routing", *stats.recorded])),
        ("tokens", f"{stats.tokens} ({stats.prefill_tokens} prefill, {stats.decode_tokens} decode)"),
        ("requests", f"{stats.requests}{'' if stats.requests_told_apart else ' (not told apart)'}"),
        ("steps", f"{stats.steps} ({stats.decode_steps} decode)"),
        ("MoE layers", str(stats.layers)),
        ("experts per layer", f"{fewest}" if fewest == most else f"{fewest} to {most}"),
        ("top-k", str(stats.top_k)),
        ("lookups", str(stats.lookups)),
        ("distinct experts per decode visit", number(stats.distinct_per_decode_visit, 3)),
        ("distinct experts per prefill visit", number(stats.distinct_per_prefill_visit, 3)),
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
        ("load entropy, mean over layers", number(stats.load_entropy_mean, 3)),
        ("load entropy, least even layer", number(stats.load_entropy_min, 3) + where),
        ("overlap of consecutive tokens", percent(stats.overlap, 1)),
        ("overlap of any two tokens", percent(stats.overlap_chance, 1)),
        ("reuse distance p50 / p90 / p99", _quantiles(stats)),
        ("first uses", percent(stats.first_use_share, 1)),
    ]
    if stats.working_set:
        windows = " / ".join(str(window) for window in stats.working_set)
        means = " / ".join(f"{mean:.1f}" for mean in stats.working_set.values())
        rows.append((f"working set per layer, {windows} tokens", means))
    if stats.cross_layer is not None:
        found = stats.cross_layer
        rows.append(("next layer from this one's experts", percent(found.hit_ratio, 1)))
        rows.append(("next layer from popularity", percent(found.popularity, 1)))
    for recall in stats.lookahead_recall:
        best = " / ".join(f"{100 * share:.0f}" for share in recall.recall.values())
        counts = " / ".join(str(count) for count in recall.recall)
        rows.append((f"recall of lookahead {recall.distance}, best {counts}", f"{best} %"))
    shift = stats.domain_shift
    if shift is not None:
        kind = f"{shift.parts} {shift.parts_are}"
        rows.append(("first half against second, bits", f"{shift.halves:.3f} (shuffled {shift.halves_by_chance:.3f})"))
        rows.append((f"{kind} against all, bits", f"{shift.part:.3f} (redrawn {shift.part_by_chance:.3f})"))
    return rows


def _quantiles(stats: "TraceStats") -> str:
    values = [stats.reuse_distance[name] for name in ("p50", "p90", "p99")]
    return "-" if None in values else " / ".join(str(value) for value in values) + " experts"


def _mib(size: int | None) -> str:
    return "bytes unknown" if size is None else f"{size / 2**20:.1f} MiB"
