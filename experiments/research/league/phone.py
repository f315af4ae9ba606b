"""Qwen3-30B-A3B on a phone whose flash holds the experts and whose memory caches some (`Helldez/BigMoeOnEdge`).

One number is fitted, the rate of the flash, on the first run; what computing and managing the cache take is stated. The
run whose routing is published is replayed on that routing; the others are timed from their counts.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.hardware import load_hardware
from engine.plan.plan import Plan
from engine.replay.counts import Cell, counts_manifest, time_cell
from engine.replay.passes import Target, run
from engine.replay.setting import Setting, costs_without_predictors
from engine.shapes import ModelShape, load_shape
from engine.simulator.costs import Costs
from experiments.research.league.entries import Entry, Source
from tracekit.errors import StudyError
from tracekit.importers import import_trace
from tracekit.rows import DECODE

ROUTE = Path("qwen3-30b-a3b-phone") / "route.csv"
ORIGIN = (
    "https://github.com/Helldez/BigMoeOnEdge, docs/bench-data: 2026-07-20-cache-replay/layer-lfu-verdict.md at "
    "3357f7a, 2026-07-15-route-trace/findings.md at 36020f2"
)
MACHINE = "OnePlus 15R"
TOP_K = 6
STEPS = 256
EXPERT_BYTES = 2.72 * 2**20
"""Stated, a mean over layers."""
DENSE_BYTES = 541 * 2**20
"""Stated, of the model."""
CLOCKS = "the processor's clock, which the source states fell between runs (1.90 to 2.19 GHz)"
FAULTS = (
    "dense weights that the system takes back while the cache turns pages over (2,370 major faults a token, 6 to 18 "
    "with LRU): how much memory was free is not stated, which `[host]` in a profile would need"
)
TRACED = (
    "what writing the trace took (a barrier a layer, a row an expert), as the source warns; another prompt and build"
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the source: hits in percent, read from flash a token (bytes), tokens/s."""

    row: str
    read_bytes: float
    tokens_per_second: float
    missing: str = ""


COMPUTE_NS, MANAGEMENT_NS = 97_000_000, 27_000_000
"""Of a token in the first run, as it states."""
RUNS = (
    Run("LRU, 3000 MiB, first", 211.48 * 2**20, 5.310),
    Run("LRU, 3000 MiB, second", 211.48 * 2**20, 5.072, CLOCKS),
    Run("LFU by layer, 3000 MiB, first", 196.55 * 2**20, 4.016, FAULTS),
    Run("LFU by layer, 3000 MiB, second", 196.55 * 2**20, 3.567, FAULTS),
)
TRACED_RUN = ("LRU, 4000 MiB, its own routing", 5.657)


def phone(data: Path) -> Source:
    """The source's rows; `data` is the folder of reference data. Raises StudyError where it is not there."""
    route = data / ROUTE
    if not route.is_file():
        raise StudyError(f"{route}: cannot be read; --data names the folder that holds it")
    shape = load_shape("qwen3-30b-a3b")
    costs = stated_costs(shape)
    rate = fitted_rate(RUNS[0], shape, costs)
    entries = [
        Entry(
            machine=MACHINE,
            row=one.row,
            kind="fitted" if one is RUNS[0] else "predicted",
            published=one.tokens_per_second,
            predicted=time_cell(cell_of(one, shape), shape, reading(costs, rate)).tokens_per_second,
            missing=one.missing,
        )
        for one in RUNS
    ]
    row, published = TRACED_RUN
    entries.append(
        Entry(
            machine=MACHINE,
            row=row,
            kind="predicted",
            published=published,
            predicted=replayed(route, costs, rate),
            missing=TRACED,
        )
    )
    share = DENSE_BYTES / (DENSE_BYTES + TOP_K * len(shape.moe_layers) * EXPERT_BYTES)
    return Source(
        name="phone",
        title="Qwen3-30B-A3B in 4 bits on a phone, experts on its flash",
        origin=ORIGIN,
        unit="tokens/s",
        decimals=3,
        fits=[f"{MACHINE}: flash {rate / 1e9:.2f} GB/s (four reads at a time, taken together), on the first run"],
        assumed=(
            f"A token computes for {COMPUTE_NS / 1e6:.0f} ms and manages its cache for {MANAGEMENT_NS / 1e6:.0f} ms, "
            f"as the first run states; of the computing {100 * share:.0f} % is the dense part's, by bytes, and the "
            "cache's work is charged to each lookup (`overhead.per_lookup_ns`). Reads overlap with experts that are "
            "there. Bytes a token are the source's; misses are spread evenly over visits, but in the last row, which "
            "replays the published routing."
        ),
        entries=entries,
    )


def stated_costs(shape: ModelShape) -> Costs:
    """The phone as the first run states it: all of a token's computing and managing; reads take no time yet."""
    costs = costs_without_predictors(counts_manifest(shape), Plan("0"), load_hardware("t4"), shape)
    layers = len(shape.moe_layers)
    bytes_of_experts = TOP_K * layers * EXPERT_BYTES
    dense_ns = COMPUTE_NS * DENSE_BYTES / (DENSE_BYTES + bytes_of_experts)
    lookups = TOP_K * layers
    return costs._replace(
        dense_ns=np.full(layers, round(dense_ns / layers), np.int64),
        expert_ns=np.full(layers, round((COMPUTE_NS - dense_ns) / lookups), np.int64),
        dequant_ns=np.zeros(layers, np.int64),
        lookup_ns=round(MANAGEMENT_NS / lookups),
        step_ns=0,
        setup_ns=0,
        copy_engines=1,
        expert_overhead_ns=0,
        expert_token_ps=0,
        dense_token_ps=0,
        context_ps=0,
        layer_overhead_ns=0,
        readback_ns=0,
        copy_overhead_ns=0,
    )


def reading(costs: Costs, bytes_per_s: float, sizes: np.ndarray | None = None) -> Costs:
    """The same with a flash of this rate; `sizes` [layers] are bytes of experts, by default the mean."""
    layers = len(costs.dense_ns)
    each = np.full(layers, EXPERT_BYTES) if sizes is None else sizes
    wire = np.round(each * 1e9 / bytes_per_s).astype(np.int64)[:, None]
    return costs._replace(chunks=np.ones(layers, np.int64), chunk_ns=wire, rest_ns=wire)


def cell_of(one: Run, shape: ModelShape) -> Cell:
    """The run as counts."""
    loads = round(one.read_bytes / EXPERT_BYTES * STEPS)
    return Cell(name=one.row, steps=STEPS, distinct=TOP_K, demand_loads=loads)


def fitted_rate(one: Run, shape: ModelShape, costs: Costs) -> float:
    """The flash's rate with which the run takes as long as it was measured, by bisection."""
    low, high = 1e7, 1e11
    for _ in range(60):
        middle = (low * high) ** 0.5
        if time_cell(cell_of(one, shape), shape, reading(costs, middle)).tokens_per_second < one.tokens_per_second:
            low = middle
        else:
            high = middle
    return high


def replayed(route: Path, costs: Costs, bytes_per_s: float) -> float:
    """Decode tokens/s of the published routing under the engine's own cache."""
    with tempfile.TemporaryDirectory() as folder:
        trace = import_trace("bigmoe-csv", route, Path(folder) / "phone.trace")
        setting = Setting.of(trace.manifest, Plan("4000MiB"))
        sizes = np.array(setting.sizes, float)
        machine = reading(costs, bytes_per_s, sizes)._replace(expert_bytes=setting.sizes)
        (found,) = run(trace, setting.spec, [Target(setting.sizes, machine)])
    decode = found.phase == DECODE
    return float(decode.sum() / found.step_ns[decode].sum() * 1e9)
