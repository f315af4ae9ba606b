"""`prior:MODEL` in place of a trace: three results side by side, each marked as what it is."""

from typing import TYPE_CHECKING, Any

import msgspec

from experiments.cli import console

if TYPE_CHECKING:
    from engine.hardware import HardwareProfile
    from engine.plan.plan import Plan
    from experiments.prior import Asked, PriorResult

TITLES = {"low": "least local", "likely": "likely", "high": "most local"}


def replay(wanted: "Asked", plan: "Plan", hardware: "HardwareProfile | None", *, json: bool, **options: Any) -> None:
    """`tracekit replay prior:MODEL`."""
    from experiments.prior import replay_prior
    from tracekit.priors import LEVELS

    drawn = len(LEVELS) * (wanted.tokens + wanted.requests * wanted.prompt_tokens)
    with console.progress("drawing routing", drawn) as advance:
        found = replay_prior(wanted, plan, hardware, progress=advance, **options)
    if json:
        from experiments.cli.results import is_calibrated
        from experiments.statistics.speeds import basis

        timed = found.results["likely"]
        said = {} if timed.time is None else {"basis": basis(calibrated=is_calibrated(timed))}
        console.emit_json(msgspec.to_builtins(found) | said)
        return
    _show(found)


def _show(found: "PriorResult") -> None:
    from experiments.cli.results import result_rows

    columns = {level: dict(result_rows(result)) for level, result in found.results.items()}
    names = dict.fromkeys(name for rows in columns.values() for name in rows)
    said = found.prior
    console.table(
        f"{said.asked.model}: {said.mark}",
        ["what", *(TITLES[level] for level in columns)],
        [[name, *(rows.get(name, "-") for rows in columns.values())] for name in names],
    )
    console.tell(f"{said.mark}: family {said.family}, {said.notice}.")
    console.warn(found.results["likely"].warnings)
