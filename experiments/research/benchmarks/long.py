"""A long trace through the whole command: 150 million lookups, one core, against reading the same files with polars."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from experiments.research.benchmarks.alternating import Row
from experiments.research.benchmarks.load import EXPERTS, LAYERS, SLOTS, TOP_K, manifest, routing
from tracekit.writer import TraceWriter

TOKENS, DRAWN, SHARD = 390_625, 20_000, 65_536
REPEATS = 3
REPLAY = "from experiments.cli.main import main; main()"
# Confined to one core; at the end the most memory it held, on stderr. (What the parent is told counts its own, too.)
CONFINED = """
import atexit, os, re, sys
from pathlib import Path
os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[-1]])
status = Path("/proc/self/status")
atexit.register(lambda: print(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1], file=sys.stderr))
"""
# What cannot be left out: the digest of every file, and the rows as numpy arrays.
READ = """
import hashlib, sys
from pathlib import Path
import polars as pl
for path in sorted(Path(sys.argv[1]).glob("*.parquet")):
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()
    pl.read_parquet(path)["experts"].to_numpy()
"""


def write_trace(path: Path) -> None:
    """390,625 tokens at 48 layers, top-8 of 128: drawn rows, renamed block by block so that no block repeats."""
    rng = np.random.default_rng(1)
    drawn = (routing(DRAWN) % EXPERTS).astype(np.uint16)
    with TraceWriter(path, manifest(expert_bytes=[1 << 20] * LAYERS)) as writer:
        for first in range(0, TOKENS, DRAWN):
            rows = np.arange(first, min(first + DRAWN, TOKENS), dtype=np.int32)
            experts = rng.permutation(EXPERTS).astype(np.uint16)[drawn[: len(rows)]]
            writer.append(step=rows, request=0, position=rows, phase=1, experts=experts)
            if first // SHARD != (first + DRAWN) // SHARD:
                writer.flush()


def on_one_core(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds of a Python process confined to one core, and the most memory it held, in bytes."""
    command = [sys.executable, "-c", CONFINED + code, *arguments]
    environment = os.environ | {"POLARS_MAX_THREADS": "1"}
    start = perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return perf_counter() - start, int(done.stderr.splitlines()[-1]) * 1024


def rows() -> list[Row]:
    """Time and memory of `tracekit replay`; nothing where a process cannot be confined to a core."""
    if not Path("/proc/self/status").exists() or not hasattr(os, "sched_setaffinity"):
        print("this system does not confine a process to one core or tell its memory: no comparison", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "long.trace"
        write_trace(trace)
        replay = ["replay", str(trace), "--policy", "lru", "--capacity", f"{SLOTS}/layer"]
        on_one_core(REPLAY, *replay)
        runs = [(on_one_core(REPLAY, *replay), on_one_core(READ, folder + "/long.trace")) for _ in range(REPEATS)]
    seconds, memory = (median(run[0][i] for run in runs) for i in (0, 1))
    reading = median(run[1][0] for run in runs)
    lookups = TOKENS * LAYERS * TOP_K
    ids = lookups * np.dtype(np.uint16).itemsize
    return [
        Row(
            f"tracekit replay of {lookups / 1e6:.0f} M lookups, one core, against reading them",
            f"{seconds:.1f} s",
            f"{reading:.1f} s",
            seconds / reading,
            "<= 5 s",
        ),
        Row(
            "its memory, against the ids'",
            f"{memory / 1e6:.0f} MB",
            f"{ids / 1e6:.0f} MB",
            memory / ids,
            "<= 1.5x",
        ),
    ]
