"""Options that describe a plan on the command line, and the plan they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.plan.plan import Plan, load_plan, plan_from_dict
from tracekit.errors import PlanError

if TYPE_CHECKING:
    from engine.replay.given_decisions import GivenDecisions
    from tracekit.trace import Trace


def plan_from_options(
    file: Path | None,
    *,
    capacity: str | None,
    policy: str | None = None,
    profile: Path | None = None,
    eviction_artefact: Path | None = None,
    prefetch_artefact: Path | None = None,
    prefetch: str | None = None,
    prefetch_distance: int | None = None,
    prefetch_count: int | None = None,
    staging: int | None = None,
    weights: str | None = None,
    prefetch_wrap: bool | None = None,
    warm: str | None = None,
    split: str | None = None,
    split_from: Path | None = None,
    pinned: str | None = None,
    pinned_profile: Path | None = None,
    domain_by: str | None = None,
    detect: int | None = None,
    labels: Path | None = None,
    routing_policy: str | None = None,
    routing_set: Sequence[str] | None = None,
    routing_profile: Path | None = None,
    miss: str | None = None,
    miss_share: float | None = None,
    admission: str | None = None,
    admit_per_step: int | None = None,
) -> Plan:
    """The plan of `file`, or of the options; options given beside a file replace what the file says."""
    tables = {} if file is None else load_plan(file).to_dict()
    if file is None and capacity is None:
        raise PlanError(
            "say how many experts the device holds: --capacity 4/layer (or 512, 2000MiB, 25%), or --plan FILE"
        )
    options: dict[str, dict[str, str | int | float | Path | None]] = {
        "cache": {"capacity": capacity, "warm": warm, "split": split, "split_from": split_from},
        "placement": {
            **{"pinned": pinned, "profile": pinned_profile},
            **{"by": domain_by, "detect": detect, "labels": labels},
        },
        "eviction": {"policy": policy, "profile": profile, "artefact": eviction_artefact},
        "prefetch": {
            "predictor": prefetch,
            "distance": prefetch_distance,
            "count": prefetch_count,
            "wrap": prefetch_wrap,
            "staging": staging,
            "artefact": prefetch_artefact,
        },
        "routing": {"policy": routing_policy, **_parameters(routing_set or ()), "profile": routing_profile},
        "miss": {"where": miss, "share": miss_share},
        "admission": {"policy": admission, "per_step": admit_per_step},
        "weights": {"experts": weights},
    }
    if routing_policy is not None:  # another policy has other parameters
        tables.pop("routing", None)
    for name, table in options.items():
        given = {
            key: str(value) if isinstance(value, Path) else value for key, value in table.items() if value is not None
        }
        if given:
            tables[name] = {**tables.get(name, {}), **given}
    return plan_from_dict(tables, str(file) if file is not None else "plan")


def _parameters(given: Sequence[str]) -> dict[str, int | float]:
    """Parameters from NAME=VALUE, truth values as true or false. Raises PlanError."""
    found: dict[str, int | float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number: int | float = {"true": True, "false": False}[value] if value in ("true", "false") else float(value)
        except ValueError:
            number = float("nan")
        if not name or name in found or name in ("policy", "profile") or number != number:
            raise PlanError(f"--routing-set {text}: give NAME=VALUE, a number or true or false, each name once")
        found[name] = number
    return found


def given_decisions(path: Path, trace: "Trace", plan: Path | None, weights: str | None) -> "GivenDecisions":
    """The decisions of a file, carried out as `plan` (if None, the file's own) says, with experts as `weights`."""
    from engine.replay.given_decisions import GivenDecisions

    given = GivenDecisions(path, trace, None if plan is None else load_plan(plan))
    if weights is not None:
        stored = msgspec.structs.replace(given.plan.weights, experts=weights)
        given.plan = given.plan.replace(weights=stored)
    return given
