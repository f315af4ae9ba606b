"""`tracekit replay --counts`: cells of which counts are known, and no routing."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from experiments.cli import console

if TYPE_CHECKING:
    from engine.replay.counts import Counted
    from engine.replay.spread import Spread


def replay_cells(
    path: Path,
    *,
    plan: Path | None,
    weights: str | None,
    hardware: str | None,
    engine: str | None,
    model_shape: str | None,
    spread: str,
    seed: int | None,
    json: bool,
) -> None:
    """Time the cells of a CSV file, and print them."""
    import msgspec

    from engine.hardware import load_hardware
    from engine.plan.plan import Plan, load_plan
    from engine.replay.counts import read_cells, replay_counts
    from engine.shapes import load_shape
    from tracekit.errors import PlanError

    if hardware is None or model_shape is None:
        raise PlanError("--counts has no model and no machine of its own: give --model-shape and --hardware")
    if spread not in ("even", "random"):
        raise PlanError(f"--spread {spread!r}: give even or random")
    if spread == "even" and seed is not None:
        raise PlanError("--spread even draws nothing: give no --seed, or --spread random")
    chosen = Plan("0") if plan is None else load_plan(plan)
    if weights is not None:
        chosen = chosen.replace(weights=msgspec.structs.replace(chosen.weights, experts=weights))
    from experiments.statistics.speeds import basis

    shape, machine = load_shape(model_shape), load_hardware(hardware, engine)
    found = replay_counts(
        read_cells(path), shape, machine, chosen, how=cast("Spread", spread), seed=0 if seed is None else seed
    )
    if json:
        console.emit_json(
            {
                "basis": basis(calibrated=machine.measured),
                "hardware": machine.name,
                "engine": machine.engine.name,
                "model_shape": shape.name,
                "compute_experts": chosen.compute.experts,
                "weights": chosen.weights,
                "spread": spread,
                "seed": seed or 0,
                "cells": found,
            }
        )
        return
    where = f"{shape.name} on {machine.name} ({machine.engine.name})"
    title = f"{path.name}: {where}, misses {spread}, experts {chosen.compute.experts}"
    console.table(title, COLUMNS, [_row(cell) for cell in found])
    if not machine.measured:
        console.tell(
            "Modelled, not measured. Counts have no requests to take an interval over: --spread random, with several "
            "--seed, shows what it matters which lookups miss."
        )


COLUMNS = ("cell", "ms/step", "tokens/s", "compute", "overhead", "stall", "link", "hit ratio", "measured", "error")


def _row(cell: "Counted") -> list[str]:
    return [
        cell.name,
        f"{cell.ms_per_step:.2f}",
        f"{cell.tokens_per_second:.2f}",
        f"{cell.compute_ms:.2f}",
        f"{cell.overhead_ms:.2f}",
        f"{sum(cell.stall_ms.values()):.2f}",
        console.percent(cell.link_utilisation, 1),
        console.percent(cell.hit_ratio),
        console.number(cell.measured_ms_per_step, 2),
        "-" if cell.error is None else f"{100 * cell.error:+.2f} %",
    ]
