"""Records a model, kills the recording at random moments and resumes it. Prints what became of each.

python killed.py MODEL FOLDER MOMENTS: FOLDER gets whole.trace and a resumed trace for each moment. Processes are
forked off one that has loaded everything, so that a moment costs little more than what it records.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tracekit.manifest import load_manifest
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import read_prompts
from tracekit.recorder.recorder import record

SETTINGS = {"max_new_tokens": 4, "batch_size": 2, "shard_rows": 12, "logits": True, "lookahead": (1,)}


def main(folder: Path, target: Path, moments: int) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = read_prompts(folder / "prompts.jsonl")

    def recording(path: Path, resume: bool) -> int:
        """The process id of a recording that has begun."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                record(model, tokenizer, prompts, path, RecordOptions(**SETTINGS, resume=resume))
                status = 0
            finally:
                os._exit(status)
        return child

    def finish(path: Path, resume: bool) -> float:
        start = time.perf_counter()
        assert os.waitpid(recording(path, resume), 0)[1] == 0, path
        return time.perf_counter() - start

    finish(target / "warm.trace", False)  # the first is slower
    seconds = finish(target / "whole.trace", False)
    rng = np.random.default_rng(0)
    killed, kept, finished = [], [], 0
    for number in range(moments):
        path = target / f"{number}.trace"
        resume = False
        for _ in range(1 + number % 2):  # every other one is killed twice
            child = recording(path, resume)
            time.sleep(rng.uniform(0, 1.1 * seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            resume = path.exists()
        # Not `Trace.open`: it starts threads, and then no process can be forked off any more.
        left = load_manifest(path) if (path / "manifest.json").exists() else None
        kept.append(0 if left is None else left.tokens)
        complete = left is not None and left.complete
        finished += complete
        # The machine's speed may have changed since the whole recording was timed: too late is no moment of it.
        seconds *= 0.9 if complete else 1.02
        if not complete:
            finish(path, resume)
        killed.append(path.name)
    print(json.dumps({"killed": killed, "kept": kept, "finished": finished}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
