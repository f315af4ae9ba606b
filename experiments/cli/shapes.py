"""`tracekit shapes`: the shipped model shapes, and any shape by path."""

from typing import Annotated, Literal

import msgspec
import typer

from engine.shapes import ModelShape, load_shape, shape_names
from experiments.cli import console, options
from tracekit.errors import ShapeError


def command(
    action: Annotated[Literal["list", "show"], typer.Argument(help="list the shipped shapes, or show one")] = "list",
    name: Annotated[str | None, typer.Argument(help="for show: a shipped name, or the path of a .toml file")] = None,
    json: options.Json = False,
) -> None:
    """List the model shapes that --model-shape and studies name, or show one with its sizes.

    Example: tracekit shapes list
    """
    if action == "show":
        if name is None:
            raise ShapeError(f"shapes show needs a shape: one of {', '.join(shape_names())}, or a .toml file")
        shape = load_shape(name)
        if json:
            console.emit_json(shape)
        else:
            rows = [(key.replace("_", " "), str(value)) for key, value in msgspec.to_builtins(shape).items()]
            console.table(shape.name, ["what", "value"], rows)
        return
    if name is not None:
        raise ShapeError(f"shapes list takes no name; to see one shape: tracekit shapes show {name}")
    shapes = [load_shape(shipped) for shipped in shape_names()]
    if json:
        console.emit_json({"shapes": shapes})
        return
    columns = ["name", "MoE layers", "experts", "top-k", "M parameters per expert"]
    console.table("Model shapes", columns, [_row(shape) for shape in shapes])


def _row(shape: ModelShape) -> list[str]:
    counts = (len(shape.moe_layers), shape.experts, shape.top_k)
    return [shape.name, *(str(count) for count in counts), f"{shape.expert_params / 1e6:.1f}"]
