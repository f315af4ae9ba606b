"""Loading a checkpoint into the engine shard by shard, against loading the model whole first: seconds, peak memory."""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.research.benchmarks.alternating import Row

REPEATS = 3
SIZES = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 8, "num_local_experts": 16}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": 4096}
WAYS = {"shard by shard": "stream", "to a directory of slabs": "disk", "reopened into memory": "memory"}

WORK = """
import sys, time, torch
torch.set_num_threads(1)
from engine.plan.plan import plan_from_dict
from engine.runtime import offload, offloaded
from tracekit.recorder.models import load_model

mini, path, way = sys.argv[1:]
plan = plan_from_dict({"cache": {"capacity": "1/layer"}})

def run(path, way):
    if way == "whole":
        model = offload(load_model(path, "auto", "cpu")[0], plan)
    elif way == "stream":
        model = offload(path, plan)
    else:
        model = offload(path, plan, host=way, slabs=str(path) + ".slabs")
    offloaded(model).close()

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024

run(mini, "whole" if way == "whole" else "stream")  # what is imported and compiled once
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
before, start = resident("VmRSS"), time.perf_counter()
run(path, way)
print(time.perf_counter() - start, resident("VmHWM") - before)
"""


def rows() -> list[Row]:
    """A random model of some 800 MB in bf16, its files in the system's cache; each run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        size = _write(path)
        whole_s, whole_bytes = _measured(path, "whole")
        found = []
        for what, way in WAYS.items():
            seconds, peak = _measured(path, way)
            found.append(
                Row(
                    f"loading {size / 1e6:.0f} MB, {what}, against whole: seconds, peak MB",
                    f"{seconds:.2f} s, {peak / 1e6:.0f}",
                    f"{whole_s:.2f} s, {whole_bytes / 1e6:.0f}",
                    seconds / whole_s,
                    "",
                )
            )
        return found


def _write(path: Path) -> int:
    """Save a random model with a tokenizer; returns the bytes of its weights."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig.from_dict(SIZES | HEADS)).bfloat16()
    model.save_pretrained(path, max_shard_size="200MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((CHECKPOINTS / NAMES[0] / name).read_bytes())
    return sum(int(parameter.nbytes) for parameter in model.parameters())


def _measured(path: Path, way: str) -> tuple[float, int]:
    """Median seconds and bytes of peak resident memory."""
    times, peaks = [], []
    slabs = path.with_name(path.name + ".slabs")
    for _ in range(REPEATS):
        if way == "disk" and slabs.exists():
            for file in slabs.iterdir():
                file.unlink()
            slabs.rmdir()
        arguments = [sys.executable, "-c", WORK, str(CHECKPOINTS / NAMES[0]), str(path), way]
        told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
        times.append(float(told[0]))
        peaks.append(int(told[1]))
    return median(times), round(median(peaks))
