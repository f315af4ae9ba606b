"""Wall time of whole commands, against a Python that only starts."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.research.benchmarks.alternating import Row, medians
from experiments.research.benchmarks.load import manifest
from tracekit.writer import TraceWriter

USER_POLICY = Path(__file__).parents[3] / "policies" / "eviction" / "lfu.py"
COMPILED = "3 s more; then <= 1.5 s"
TRACEKIT = (sys.executable, "-c", "from experiments.cli.main import main; main()")


def call(command: Sequence[str]) -> None:
    """Run a command; its output is not looked at, its failure is."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def edited(policy: Path, command: Sequence[str]) -> None:
    """Run a command after its policy's file has become one that was never compiled."""
    policy.write_text(f"{USER_POLICY.read_text()}\n# {time.time_ns()}\n")
    call(command)


def small_trace(path: Path) -> None:
    """A trace of 2,000 tokens, 8 layers, top-2 of 8, drawn at random."""
    rng = np.random.default_rng(0)
    tokens, layers, experts = 2_000, 8, 8
    chosen = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :2].astype(np.uint16)
    order = np.arange(tokens, dtype=np.int32)
    with TraceWriter(path, manifest(layers, experts, top_k=2)) as writer:
        writer.append(step=order, request=0 * order, position=order, phase=np.uint8(1), token_id=-1, experts=chosen)
        writer.finish()


def rows() -> list[Row]:
    """`tracekit --help` and a warm `tracekit replay`, in units of an empty Python's start."""
    empty = partial(call, [sys.executable, "-c", "pass"])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "small.trace"
        small_trace(trace)
        replay = [*TRACEKIT, "replay", str(trace), "--capacity", "4/layer", "--hardware", "rtx3060"]
        replay += ["--model-shape", "mixtral-8x7b"]
        for what, command, limit in (
            ("tracekit --help, against an empty Python", [*TRACEKIT, "--help"], "<= 0.3 s"),
            ("tracekit replay, warm, against an empty Python", replay, "<= 1.5 s"),
        ):
            call(command)
            ours, peer = medians(partial(call, command), empty)
            found.append(Row(what, f"{ours:.2f} s", f"{peer:.2f} s", ours / peer, limit))
        mine = Path(folder) / "mine.py"
        own = [*TRACEKIT, "replay", str(trace), "--capacity", "4/layer", "--policy", f"{mine}:Lfu", "--no-bounds"]
        first, again = medians(partial(edited, mine, own), partial(call, own), repeats=3)
        found.append(
            Row(
                "first replay with an edited policy, against the next",
                f"{first:.2f} s",
                f"{again:.2f} s",
                first / again,
                COMPILED,
            )
        )
    return found
