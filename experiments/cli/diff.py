"""`tracekit diff`: routing drift between two recordings of the same prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli import console, options
from experiments.cli.console import number, percent

if TYPE_CHECKING:
    from tracekit.edit.diff import Diff

_SHOWN = 12


def command(
    one: Annotated[Path, typer.Argument(help="a trace directory", metavar="A.trace")],
    other: Annotated[Path, typer.Argument(help="another recording of the same prompts", metavar="B.trace")],
    json: options.Json = False,
) -> None:
    """Say how far two recordings of the same prompts differ, by layer, position and request.

    Tokens are matched by request and position; what follows a different token is left out, where token ids are known.

    Example: tracekit diff bf16.trace fp16.trace
    """
    import msgspec

    from tracekit.edit.diff import diff
    from tracekit.trace import Trace

    first, second = Trace.open(one), Trace.open(other)
    with console.progress("comparing", first.tokens) as advance:
        found = diff(first, second, progress=advance)
    if json:
        console.emit_json({"first": str(one), "second": str(other), **msgspec.structs.asdict(found)})
        return
    console.table(f"{one} and {other}", ["what", "value"], _summary(found))
    if found.compared:
        console.table(
            "by position, over all layers",
            ["positions", "tokens", "same experts", "Jaccard"],
            [
                [f"{part.first} to {part.last}", str(part.tokens), percent(part.equal), percent(part.jaccard)]
                for part in found.by_position
            ],
        )
        worst = sorted(found.by_layer, key=lambda layer: (layer.equal, layer.layer))[:_SHOWN]
        console.table(
            f"the {len(worst)} layers that differ most",
            ["layer", "same experts", "Jaccard", "weight difference"],
            [
                [str(part.layer), percent(part.equal), percent(part.jaccard), number(part.weight_difference, 4)]
                for part in worst
            ],
        )
    differing = [part for part in found.by_request if part.first_routing_difference is not None]
    for part in differing[:_SHOWN]:
        text = (
            "" if part.first_token_difference is None else f", its text from position {part.first_token_difference} on"
        )
        console.tell(
            f"request {part.request}: routing differs from position {part.first_routing_difference}, layer "
            f"{part.first_layer} on{text}"
        )
    if len(differing) > _SHOWN:
        console.tell(f"and {len(differing) - _SHOWN} more requests: --json lists them")


def _summary(found: "Diff") -> list[list[str]]:
    rows = [
        ["tokens compared", str(found.compared)],
        ["tokens in one recording only", f"{found.only_in_first} and {found.only_in_second}"],
        ["tokens after a different token, left out", str(found.after_token_difference)],
        ["same experts, share of token and layer", percent(found.equal)],
        ["Jaccard index of the experts, mean", percent(found.jaccard)],
        ["weight difference, mean and largest", number(found.weight_difference, 4)],
        ["requests whose routing differs", f"{found.requests_that_differ} of {len(found.by_request)}"],
    ]
    rows[5][1] += f" and {number(found.largest_weight_difference, 4)}"
    return rows
