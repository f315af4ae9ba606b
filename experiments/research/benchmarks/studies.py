"""Studies: cells per second with two threads against one and with two Dask workers against one, and how long 1,000
plans on four machines would take.

The last is measured on a smaller grid and two shorter traces, and scaled: what is fixed by the number of passes, the
rest by that and the number of lookups. Bounds (two passes for each capacity) and verdicts come on top.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.load import EXPERTS, LAYERS, TOP_K, manifest, routing
from experiments.study.cell_results import measure
from experiments.study.cells import Cell, cells_of, groups
from experiments.study.study_file import study_from_dict
from experiments.study.workers import Threads, Workers
from tracekit.writer import TraceWriter

SHORT, LONG = 2_000, 12_000  # steps
PLANS, LOOKUPS = 1_000, 20_000_000
MACHINES = ["t4", "rtx3060", "rtx4090", "h100"]
GRID: dict[str, str | list[str]] = {
    "capacity": ["16/layer", "32/layer"],
    "eviction": ["lru", "lfu", "fifo", "clock", "sieve"],
    "hardware": MACHINES,
    "model_shape": "qwen3-30b-a3b",
}


def write_trace(path: Path, steps: int) -> None:
    """A decode of one token a step, routed as the other benchmarks' load is."""
    order = np.arange(steps)
    experts = (routing(steps) - (np.arange(LAYERS, dtype=np.int32) * EXPERTS)[None, :, None]).astype(np.uint16)
    with TraceWriter(path, manifest()) as writer:
        writer.append(
            step=order, request=order * 50 // steps, position=order % 500, phase=1, token_id=-1, experts=experts
        )


def grid(trace: Path) -> list[Cell]:
    """The cells that are timed, without bounds, which all plans of a capacity share."""
    return cells_of(study_from_dict({"traces": str(trace), "bounds": False, "grid": GRID}))


def replay_all(workers: Workers, cells: list[Cell]) -> None:
    """Everything that a study's workers do."""
    rows = [row for _, found in workers.run(measure, groups(cells)) for row in found]
    if len(rows) != len(cells) or any(row.get("error") for row in rows):
        raise AssertionError("a cell could not be replayed")


def rows() -> list[Row]:
    """Two threads against one, and the estimate."""
    with tempfile.TemporaryDirectory() as folder:
        passes, processor = 0, []
        for steps in (SHORT, LONG):
            trace = Path(folder) / f"{steps}.trace"
            write_trace(trace, steps)
            cells = grid(trace)
            passes = len(groups(cells))
            one, two = Threads(1), Threads(2)
            replay_all(one, cells)  # compiled, and the demand in memory
            start = time.process_time()
            replay_all(one, cells)
            processor.append((time.process_time() - start) / passes)
        replay_all(two, cells)
        both, alone = medians(lambda: replay_all(two, cells), lambda: replay_all(one, cells), repeats=3)
        dask = on_dask(cells)
    print(
        f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; two processes that only count are "
        f"{possible_speedup():.2f}x as fast as one after the other",
        file=sys.stderr,
    )
    # A pass takes a fixed time and one that grows with the trace; others' load hardly moves the processor's clock.
    per_step = (processor[1] - processor[0]) / (LONG - SHORT)
    fixed = processor[0] - per_step * SHORT
    minutes = PLANS * (fixed + per_step * LOOKUPS / (LAYERS * TOP_K)) / 2 / 60
    return [
        Row.of_rates(
            f"study: {passes} plans x {len(MACHINES)} machines, {LONG * LAYERS * TOP_K / 1e6:.1f} M lookups, cells/s "
            "on 2 threads, against 1",
            len(cells) / both,
            len(cells) / alone,
            ">= 1.7x",
        ),
        *dask,
        Row(
            f"{PLANS:,} plans x {len(MACHINES)} machines on {LOOKUPS / 1e6:.0f} M lookups, scaled from "
            f"{passes} plans: processor time over 2 cores, against 10 minutes",
            f"{minutes:.1f} min",
            "10 min",
            10 / minutes,
            ">= 1x",
        ),
    ]


def on_dask(cells: list[Cell]) -> list[Row]:
    """Two local Dask workers against one, once they are up and have the demand in memory."""
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError:
        print("distributed is not installed: no comparison with Dask", file=sys.stderr)
        return []
    from experiments.study.cluster import Cluster, local_cluster

    with local_cluster(2) as two, local_cluster(1) as one:
        clusters = [Cluster(cluster.scheduler_address) for cluster in (two, one)]
        for cluster in clusters:
            for _ in range(2):  # each worker meets the trace, whatever the scheduler gives it first
                replay_all(cluster, cells)
        both, alone = medians(lambda: replay_all(clusters[0], cells), lambda: replay_all(clusters[1], cells), repeats=3)
    what = "the same on Dask, local: 2 workers, against 1"
    return [Row.of_rates(what, len(cells) / both, len(cells) / alone, ">= 1.6x")]


def possible_speedup() -> float:
    """How much faster two processes of plain counting are than one after the other, here and now."""
    import subprocess

    command = [sys.executable, "-c", "sum(range(20_000_000))"]
    start = time.perf_counter()
    for _ in range(2):
        subprocess.run(command, check=True)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    running = [subprocess.Popen(command) for _ in range(2)]
    for process in running:
        process.wait()
    return alone / (time.perf_counter() - start)
