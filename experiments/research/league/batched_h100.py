"""Batched Mixtral-8x7B with offloaded experts on an H100, without prefetching (`aojsd/GPU_Offloading`).

One number is fitted for each cache size: the link's rate, on the size's first row. Everything else is what the source
states: compute of a step, distinct experts, demand loads, and that the experts of a layer are one kernel.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from engine.hardware import Link, load_hardware
from engine.plan.plan import Plan
from engine.replay.counts import Cell, counts_manifest, time_cell
from engine.replay.setting import costs_without_predictors
from engine.shapes import ModelShape, load_shape
from engine.simulator.costs import Costs
from experiments.research.league.entries import Entry, Source
from tracekit.errors import StudyError

FILE = Path("h100-mixtral") / "no-prefetch.csv"
ORIGIN = "https://github.com/aojsd/GPU_Offloading, results/MoE/mixtral-8x7B/results_H100.md at fba7e2b"
STATED_LINK = 56e9
"""Bytes per second, host to device."""
DENSE_NS = 180_000
"""Of each layer: set-up 0.02 ms, dense stages 0.08 + 0.04, attention 0.04."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What is stated of a cache size, beside its rows. Times in nanoseconds."""

    tokens: float
    distinct: float
    step_ns: int
    experts_ns: int
    """The experts' part of each layer."""


STATED: dict[int, Stated] = {
    80: Stated(19.1, 6.27, 37_540_000, 976_000),
    70: Stated(19.3, 6.11, 34_980_000, 903_000),
    60: Stated(19.0, 6.14, 34_720_000, 898_000),
}
"""By the share of all experts that the cache holds, in percent."""


def batched_h100(data: Path) -> Source:
    """The source's rows; `data` is the folder of reference data. Raises StudyError where it is not there."""
    shape = load_shape("mixtral-8x7b")
    fits, entries, apart = [], [], []
    for percent, cells in _cells(data / FILE).items():
        costs = stated_costs(shape, STATED[percent])
        first = cells[0]
        copy_ns = fitted_copy_ns(first, shape, costs)
        rate = 2 * shape.expert_params / copy_ns
        fits.append(
            f"cache of {percent} %: link {rate:.2f} GB/s, on {first.name} (stated: about {STATED_LINK / 1e9:.0f})"
        )
        apart += errors_if_each(cells, shape, STATED[percent])
        for cell in cells:
            entries.append(
                Entry(
                    machine="H100",
                    row=f"{percent} % cached, {cell.name}",
                    kind="fitted" if cell is first else "predicted",
                    published=cell.ms_per_step or 0.0,
                    predicted=time_cell(cell, shape, with_copy(costs, copy_ns)).ms_per_step,
                )
            )
    return Source(
        name="batched-h100",
        title="Mixtral-8x7B in 16 bits, batched, on an H100, nothing prefetched",
        origin=ORIGIN,
        unit="ms per step",
        decimals=2,
        fits=fits,
        assumed=(
            "Routing is not published: total demand loads and mean distinct experts are spread evenly over visits "
            '(`replay --counts`). Experts are fused (`compute.experts = "fused"`), as stated, so which visits miss '
            "does not matter. Compute of a step is as stated, not modelled. With nothing hidden a step is its compute "
            "and its copies one after the other, and these rows test no more than that. If each expert were computed "
            "as it arrives, the same fit would leave errors of up to "
            f"{100 * max(apart, key=abs):+.1f} %."
        ),
        entries=entries,
    )


def errors_if_each(cells: list[Cell], shape: ModelShape, stated: Stated) -> list[float]:
    """Errors of the rows but the first, to which the link is fitted, if experts were not fused."""
    costs = stated_costs(shape, stated)._replace(call_ns=-1)
    fitted = with_copy(costs, fitted_copy_ns(cells[0], shape, costs))
    return [error for cell in cells[1:] if (error := time_cell(cell, shape, fitted).error) is not None]


def stated_costs(shape: ModelShape, stated: Stated) -> Costs:
    """Costs of the H100 with the compute that is stated: of each layer, and what is left of the step's."""
    machine = load_hardware("h100")
    machine = replace(machine, link=Link(host_to_device_bytes_per_s=int(STATED_LINK), latency_ns=0, copy_engines=1))
    plan = Plan("0", compute_experts="fused")
    costs = costs_without_predictors(counts_manifest(shape), plan, machine, shape)
    layers = len(shape.moe_layers)
    return costs._replace(
        dense_ns=np.full(layers, DENSE_NS, np.int64),
        expert_ns=np.full(layers, round(stated.experts_ns / stated.distinct), np.int64),
        step_ns=stated.step_ns - layers * (DENSE_NS + stated.experts_ns),
        call_ns=0,
        expert_overhead_ns=0,
        expert_token_ps=0,
        dense_token_ps=0,
        context_ps=0,
        layer_overhead_ns=0,
        readback_ns=0,
        copy_overhead_ns=0,
    )


def with_copy(costs: Costs, copy_ns: int) -> Costs:
    """The same machine, where a copy takes this long."""
    return costs._replace(rest_ns=np.full_like(costs.rest_ns, copy_ns), chunk_ns=np.full_like(costs.chunk_ns, copy_ns))


def fitted_copy_ns(cell: Cell, shape: ModelShape, costs: Costs) -> int:
    """How long a copy takes if the cell is to take as long as it was measured, by bisection to the nanosecond."""
    assert cell.ms_per_step is not None
    low, high = 0, 1 << 30
    while high - low > 1:
        middle = (low + high) // 2
        if time_cell(cell, shape, with_copy(costs, middle)).ms_per_step < cell.ms_per_step:
            low = middle
        else:
            high = middle
    return high


def _cells(path: Path) -> dict[int, list[Cell]]:
    """The rows by cache size, in the order of the file."""
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    except OSError as problem:
        raise StudyError(f"{path}: cannot be read: {problem.strerror}; --data names the folder that holds it") from None
    found: dict[int, list[Cell]] = {}
    for row in csv.DictReader(lines):
        percent = int(row["cache_percent"])
        found.setdefault(percent, []).append(
            Cell(
                name=row["policy"],
                steps=int(row["steps"]),
                tokens=STATED[percent].tokens,
                distinct=STATED[percent].distinct,
                demand_loads=int(row["demand_loads"]),
                ms_per_step=float(row["ms_per_step"]),
            )
        )
    return found
