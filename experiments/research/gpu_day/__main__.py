"""python -m experiments.research.gpu_day [--part 1|2|3] [--device cuda] [--tiny] [--output docs/measurements]

Each part ends by itself within `--minutes` (9) with what it has; the same command again goes on where it ended.
"""

import argparse
import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

# Asking whether there is a GPU must not touch CUDA in this process, which forks one for each step.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.research.gpu_day.machine import describe  # after the environment is set
from experiments.research.gpu_day.page import write_page
from experiments.research.gpu_day.runner import Results, run_steps
from experiments.research.gpu_day.steps import PARTS, steps_of


def main(arguments: list[str]) -> int:
    """Run a part, or all; 1 when a step failed, 0 otherwise. What is left for another time is no failure."""
    options = _options(arguments)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        import torch

        torch.set_num_threads(1)
    files = {part: output / f"gpu-day-part{part}.json" for part in PARTS}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for part in PARTS if options.part is None else (options.part,):
            head = {
                "part": part,
                "command": shlex.join(["python", "-m", "experiments.research.gpu_day", *arguments]),
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
                "machine": describe(options.device),
            }
            results = Results(files[part], head)
            steps = steps_of(part, options.device, output, Path(scratch), tiny=options.tiny)
            for name, outcome in run_steps(steps, results, 60 * options.minutes - 10):
                print(f"part {part}, {name}: {outcome}", flush=True)
                write_page(output, files.values())
            failed |= any(found["outcome"] != "done" for found in results.steps.values())
    print(f"wrote {output / 'gpu-day.md'}")
    return int(failed)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_day", description="What only a GPU can tell, in three parts.")
    parser.add_argument("--part", type=int, choices=PARTS, help="without it, one after the other")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes and few repetitions: does the command work?")
    parser.add_argument("--minutes", type=float, default=9.0, help="in which a part ends")
    parser.add_argument("--output", type=Path, default=Path("docs/measurements"), help="where results are kept")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
