"""Studies to test: small traces, what a study leaves, and one that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.traces import make_trace, random_experts
from tracekit.trace import Trace

ROOT = Path(__file__).resolve().parents[2]


def traced(path: Path, seed: int, tokens: int = 60, requests: int = 8, **fields: Any) -> Trace:
    rng = np.random.default_rng(seed)
    request = np.arange(tokens) % requests
    logits = rng.normal(size=(tokens, 2, 8)).astype(np.float16)
    return make_trace(
        path,
        random_experts(rng, tokens, layers=3),
        num_experts=8,
        request=request,
        phase=(np.arange(tokens) >= requests).astype(np.uint8),
        step=np.arange(tokens) // 2,
        lookahead={1: logits},
        **fields,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every final file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def killed_at(pieces: tuple[int, ...], study: Path, out: Path, workers: int) -> int:
    """Run a study again and again, killing it (-9) once it has so many pieces; returns how often it was killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = 0
    for count in pieces:
        with subprocess.Popen(
            study_command(study, out, workers), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            deadline = time.monotonic() + 60
            while running.poll() is None and len(list(out.glob("cells/*.parquet"))) < count:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if running.poll() is None:
                running.send_signal(signal.SIGKILL)
                killed += 1
    return killed


def study_command(study: Path, out: Path, workers: int) -> list[str]:
    """The command line of a study in a process of its own."""
    command = [sys.executable, "-c", "from experiments.cli.main import main; main()", "study"]
    return [*command, str(study), "--output", str(out), "--workers", str(workers)]
