"""Qwen3-30B-A3B with all experts in host memory and a cache of slots on the card, of several sizes (`kekzl/imp`).

Two numbers are fitted for the machine, on the two smallest caches of one sweep: what a token takes without a miss, and
what a miss takes. Hit ratios are the source's.
"""

from dataclasses import dataclass

import numpy as np

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.counts import Cell, counts_manifest, time_cell
from engine.replay.setting import costs_without_predictors
from engine.shapes import ModelShape, load_shape
from engine.simulator.costs import Costs
from experiments.research.league.entries import Entry, Source

ORIGIN = "https://github.com/kekzl/imp, pull requests 1365, 1374 and 1375"
MACHINE = "kekzl's 32 GiB card"
STEPS = 256
EXPERT_BYTES = 2.72 * 2**20
"""Of one in Q4_K_M, a mean over layers, as the phone's traces of the same model say."""
EVICTED = (
    "what keeping the books of a cache takes that keeps nothing, as one below three times top-k slots a layer does"
)
STAGED = "the way without the cache, through one staging buffer, which is another path of that engine"
BUILDS = "why the sweep, of a later build, is 22 % faster at the same hit ratio"
RESIDENT = "a resident engine's own path: captured graphs, and no host between layers"


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the source: share of lookups that hit, and tokens/s."""

    row: str
    hits: float
    tokens_per_second: float
    fitted: bool = False
    missing: str = ""


ROWS = (
    Published("24 slots a layer", 0.366, 10.51, fitted=True),
    Published("73 slots a layer", 0.741, 20.99, fitted=True),
    Published("146 slots a layer", 0.894, 30.51),
    Published("244 slots a layer", 0.962, 51.86),
    Published("again over a warm cache", 0.887, 24.98, missing=BUILDS),
    Published("14 slots a layer, cache on", 0.0, 5.60, missing=EVICTED),
    Published("19 slots a layer, cache on", 0.004, 6.28, missing=EVICTED),
    Published("without a cache", 0.0, 6.84, missing=STAGED),
    Published("everything resident", 1.0, 311.24, missing=RESIDENT),
)


def lru_sweep() -> Source:
    """The source's rows."""
    shape = load_shape("qwen3-30b-a3b")
    first, second = (row for row in ROWS if row.fitted)
    misses = [misses_of(row, shape) / STEPS for row in (first, second)]
    times = [1e9 / row.tokens_per_second for row in (first, second)]
    copy_ns = (times[0] - times[1]) / (misses[0] - misses[1])
    token_ns = times[0] - copy_ns * misses[0]
    costs = fitted_costs(shape, round(copy_ns), round(token_ns))
    return Source(
        name="lru-sweep",
        title="Qwen3-30B-A3B in 4 bits, one token a step, a cache of slots on the card",
        origin=ORIGIN,
        unit="tokens/s",
        decimals=2,
        fits=[
            f"{MACHINE}: {token_ns / 1e6:.1f} ms a token and {copy_ns / 1e3:.0f} us a miss, on the two smallest "
            f"caches; at the stated 25.6 GB/s its bytes take {EXPERT_BYTES / 25.6e3:.0f} us, and the rest is not the "
            "link's"
        ],
        assumed=(
            "Hit ratios are the source's, per matrix; an expert has three, which miss together. Misses are spread "
            "evenly over visits, nothing is hidden behind them, and experts themselves are part of what a token takes."
        ),
        entries=[
            Entry(
                machine=MACHINE,
                row=row.row,
                kind="fitted" if row.fitted else "predicted",
                published=row.tokens_per_second,
                predicted=time_cell(cell_of(row, shape), shape, costs).tokens_per_second,
                missing=row.missing,
            )
            for row in ROWS
        ],
    )


def misses_of(row: Published, shape: ModelShape) -> int:
    """Experts copied in `STEPS` tokens."""
    return round((1 - row.hits) * STEPS * shape.top_k * len(shape.moe_layers))


def cell_of(row: Published, shape: ModelShape) -> Cell:
    """The row as counts."""
    return Cell(name=row.row, steps=STEPS, distinct=shape.top_k, demand_loads=misses_of(row, shape))


def fitted_costs(shape: ModelShape, copy_ns: int, token_ns: int) -> Costs:
    """A machine on which a copy takes so long, a token without one so long, and nothing else takes time."""
    costs = costs_without_predictors(counts_manifest(shape), Plan("0"), load_hardware("rtx4090"), shape)
    none = np.zeros(len(shape.moe_layers), np.int64)
    return costs._replace(
        dense_ns=none,
        expert_ns=none,
        dequant_ns=none,
        rest_ns=np.full_like(costs.rest_ns, copy_ns),
        chunk_ns=np.full_like(costs.chunk_ns, copy_ns),
        step_ns=token_ns,
        setup_ns=0,
        expert_overhead_ns=0,
        expert_token_ps=0,
        dense_token_ps=0,
        context_ps=0,
        layer_overhead_ns=0,
        readback_ns=0,
        copy_overhead_ns=0,
    )
