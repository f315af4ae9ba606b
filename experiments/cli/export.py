"""`tracekit export`: a plan as the nearest setting of another engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.shapes import ModelShape


def command(
    plan: Annotated[Path, typer.Argument(help="a plan file (TOML)")],
    to: Annotated[str, typer.Option(help="llama.cpp, ktransformers, vllm or sglang")],
    model: Annotated[
        str, typer.Option(help="the model: its directory, config.json or GGUF, or a shipped shape's name")
    ],
    trace: Annotated[
        Path | None, typer.Option(help="write how often each expert was chosen in it, for engines that place by counts")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            help="the file of counts to write; expert_counts.json with --trace. Pinned experts come first in it"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print the arguments of another engine that come nearest to a plan, and line by line what they leave out.

    Example: tracekit export best.plan.toml --to llama.cpp --model mixtral-8x7b
    """
    from engine.decisions.pinning import placed
    from engine.plan.export import export
    from engine.plan.foreign_engines import Sized
    from engine.plan.placement import by_layer
    from engine.plan.plan import load_plan
    from engine.plan.weights import WeightFormat
    from engine.shapes import load_shape

    loaded, shape = load_plan(plan), load_shape(model)
    size = shape.expert_bytes(WeightFormat.parse(loaded.weights.experts or "bf16"))
    sized = Sized(shape.moe_layers, shape.experts, size)
    keys = by_layer(placed(loaded.placement, [shape.experts] * len(shape.moe_layers)), shape.experts)
    pinned = {int(layer): own for layer, own in keys.items()}
    if trace is not None and counts is None:
        counts = Path("expert_counts.json")
    found = export(loaded, sized, to, counts=None if counts is None else str(counts), pinned=pinned)
    if counts is not None:
        write_counts(trace, shape, counts, pinned if to == "ktransformers" else {})
    if json:
        console.emit_json(
            {
                "engine": to,
                "arguments": found.arguments,
                "command": found.command,
                "notes": found.notes,
                "lost": found.lost,
            }
        )
        return
    console.tell(found.command)
    for note in found.notes:
        console.tell(f"note: {note}")
    for line in found.lost:
        console.tell(f"not carried over: {line}")


def write_counts(
    trace: Path | None, shape: "ModelShape", path: Path, pinned: "Mapping[int, Sequence[int]] | None" = None
) -> None:
    """How often each expert was chosen, [model layers, experts], as SGLang reads it; what is pinned before all else."""
    import msgspec
    import numpy as np

    from engine.plan.foreign_engines import ranked
    from tracekit.durable import check_place, reporting, write_synced
    from tracekit.errors import PlanError
    from tracekit.popularity import popularity

    if trace is None and not pinned:
        raise PlanError("--counts: nothing is counted without --trace, and nothing pinned that KTransformers reads so")
    if path.is_file():
        raise PlanError(f"{path} exists: choose another --counts, or remove it")
    check_place(path)
    layers = len(shape.moe_layers)
    found = np.zeros((layers, shape.experts)) if trace is None else popularity(trace, [shape.experts] * layers)
    every = np.zeros((shape.layers, shape.experts), np.int64)
    every[list(shape.moe_layers)] = np.rint(ranked(found, pinned or {}))
    data = msgspec.json.encode({"logical_count": every.tolist()})
    with reporting(path):
        write_synced(path, lambda file: file.write(data))
