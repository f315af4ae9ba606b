"""Requests of the reference models as a population: recorded once, of unequal lengths, replayed under several
policies."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.demo.reference_models import CHECKPOINTS
from experiments.demo.stdlib_text import prompts
from experiments.research.prediction.plan_times import measure
from experiments.research.prediction.recordings import SETTINGS, Setting
from tracekit.edit import merge
from tracekit.trace import Trace

LENGTHS = {12: 60, 40: 40, 110: 20, 330: 8}
"""Requests by new tokens: a sixteenth of them hold two fifths of the tokens."""
RIVALS = ("lfu", "fifo", "lru-k", "sieve", "random", "layer-aware")


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """What each recorded request took under LRU and under a rival, in nanoseconds, [requests] each."""

    model: str
    rival: str
    ours: np.ndarray
    theirs: np.ndarray


def populations(folder: Path) -> list[Population]:
    """Every pair of policies on every reference model; traces are recorded where they are not in `folder` yet."""
    found = []
    for setting in SETTINGS:
        trace = _trace(setting, folder)
        base = measure(trace, setting, {"policy": "lru"}, {}).by_request.astype(np.float64)
        for rival in RIVALS:
            other = measure(trace, setting, {"policy": rival}, {}).by_request.astype(np.float64)
            found.append(Population(setting.model, rival, base, other))
    return found


def _trace(setting: Setting, folder: Path) -> Trace:
    """Held-out text continued by sampling, its requests of LENGTHS."""
    whole = folder / f"{setting.model}-unequal.trace"
    if whole.exists():
        return Trace.open(whole)
    from tracekit.recorder.models import load_model
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import read_prompts
    from tracekit.recorder.recorder import record

    model, tokenizer = load_model(CHECKPOINTS / setting.model, "float32", "cpu")
    texts, parts = prompts(sum(LENGTHS.values())), []
    for number, (length, count) in enumerate(LENGTHS.items()):
        own, texts = texts[:count], texts[count:]
        file, part = folder / f"{length}.jsonl", folder / f"{setting.model}-{length}.trace"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in own))
        options = RecordOptions(max_new_tokens=length, do_sample=True, seed=number, resume=part.exists())
        record(model, tokenizer, read_prompts(file), part, options)
        parts.append(Trace.open(part))
    return merge(parts, whole)
