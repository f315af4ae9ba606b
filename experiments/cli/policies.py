"""`tracekit policies`: which eviction policies and prefetchers there are."""

from enum import StrEnum
from typing import Annotated, Any

import typer


class Action(StrEnum):
    list = "list"


def command(
    action: Annotated[Action, typer.Argument(help="list them")] = Action.list,
    json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """List eviction policies and prefetchers: what each does, reads and takes, and where it comes from.

    Example: tracekit policies list
    """
    from experiments.cli import console
    from policies.registry import eviction_policy, names, prefetcher

    found: list[dict[str, Any]] = []
    for kind, load in (("eviction", eviction_policy), ("prefetch", prefetcher)):
        for name in names(kind):
            policy = load(name)
            found.append(
                {
                    "kind": kind,
                    "name": name,
                    "summary": policy.summary,
                    "reads": policy.reads,
                    "bound": policy.bound,
                    "parameters": policy.parameters(),
                    "source": policy.source,
                }
            )
    if json:
        console.emit_json(found)
        return
    columns = ["name", "kind", "reads", "bound", "summary"]
    rows = [[p["name"], p["kind"], p["reads"], "yes" if p["bound"] else "", p["summary"]] for p in found]
    console.table("Policies", columns, rows)
