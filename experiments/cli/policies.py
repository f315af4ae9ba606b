"""`tracekit policies`: which policies there are, and whether one keeps the contract."""

from typing import Annotated, Literal

import typer

from experiments.cli import console, options


def command(
    action: Annotated[Literal["list", "check"], typer.Argument(help="list them, or check one")] = "list",
    name: Annotated[str | None, typer.Argument(help="to check: a policy's name, or ./file.py:Class")] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="to check: seconds before a hook counts as one that never returns")
    ] = 10.0,
    json: options.Json = False,
) -> None:
    """List policies of every kind, or check one: rule by rule, with the smallest example of each failure.

    check exits with 0 if every rule passes, 1 if one fails, 2 if the policy cannot be loaded.

    Example: tracekit policies check ./mine.py:Mine
    """
    if (action == "check") != (name is not None):
        raise typer.BadParameter("check needs the name of a policy, or ./file.py:Class; list takes none")
    if name is None:
        _list(json)
    elif not _check(name, timeout, json):
        raise typer.Exit(1)


def _check(name: str, seconds: float, json: bool) -> bool:
    from policies.conformance import check
    from policies.conformance.report import RULES

    with console.progress(f"checking {name}", None):
        reports = check(name, seconds=seconds)
    if json:
        console.emit_json({"reports": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            says = RULES[report.kind]
            rows = [[outcome.rule, outcome.status, says[outcome.rule]] for outcome in report.outcomes]
            console.table(f"{name} ({report.kind})", ["rule", "result", "what it asks"], rows)
            for outcome in report.outcomes:
                if outcome.status == "fail":
                    console.tell(f"{outcome.rule}: {outcome.message}")
    return all(report.passed for report in reports)


def _list(json: bool) -> None:
    from policies.registry import admission_policy, eviction_policy, names, prefetcher, routing_policy, tier_rule

    loaders = {
        **{"eviction": eviction_policy, "prefetch": prefetcher, "admission": admission_policy},
        **{"routing": routing_policy, "precision": tier_rule},
    }
    found = [(kind, name, load(name)) for kind, load in loaders.items() for name in names(kind)]
    if json:
        policies = [
            {
                "kind": kind,
                "name": name,
                "summary": policy.summary,
                "reads": policy.reads,
                "bound": policy.bound,
                "parameters": policy.parameters(),
                "ranges": policy.ranges(),
                "source": policy.source,
            }
            for kind, name, policy in found
        ]
        console.emit_json({"policies": policies})
        return
    columns = ["name", "kind", "reads", "foresight", "summary"]
    rows = [[name, kind, policy.reads, "yes" if policy.bound else "", policy.summary] for kind, name, policy in found]
    console.table("Policies", columns, rows)
