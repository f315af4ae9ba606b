"""Studies of 1,000 plans on four machines and 20 million lookups, to be run whole: what `studies` only estimates.

    python -m experiments.research.benchmarks.full_study FOLDER
    time tracekit study FOLDER/plain.toml --output FOLDER/plain
    time tracekit study FOLDER/mixed.toml --output FOLDER/mixed

`plain.toml` has 100 capacities and ten eviction policies, `mixed.toml` 25 capacities, the same policies and four ways
of prefetching. The trace takes 650 MB, nearly all of it lookahead.
"""

import sys
from pathlib import Path

import numpy as np

from experiments.research.benchmarks.load import EXPERTS, LAYERS, TOP_K, log_popularity, manifest
from experiments.research.benchmarks.studies import LOOKUPS, MACHINES
from tracekit.writer import TraceWriter

PIECE = 1_000  # steps
POLICIES = ["lru", "lfu", "lfu-aging", "fifo", "clock", "sieve", "s3fifo", "arc", "lru-k", "random"]
STUDY = """traces = "long.trace"
bounds = false
regret = 0

[grid]
capacity = {capacities}
eviction = {policies}
prefetch = {prefetch}
hardware = {machines}
model_shape = "qwen3-30b-a3b"
"""


def write_long_trace(path: Path, steps: int, seed: int = 0) -> None:
    """Independent draws as the other benchmarks' load; the gate of the layer before names the same with noise."""
    rng = np.random.default_rng(seed)
    weights = log_popularity(rng)
    with TraceWriter(path, manifest()) as writer:
        for first in range(0, steps, PIECE):
            order = np.arange(first, min(first + PIECE, steps))
            scores = rng.gumbel(size=(len(order), LAYERS, EXPERTS)).astype(np.float32) + weights
            seen_ahead = scores[:, 1:] + rng.normal(size=(len(order), LAYERS - 1, EXPERTS))
            writer.append(
                step=order,
                request=order * 50 // steps,
                position=order % 500,
                phase=1,
                experts=np.argsort(-scores, axis=2)[:, :, :TOP_K].astype(np.uint16),
                lookahead={1: seen_ahead.astype(np.float16)},
            )


def main(folder: Path) -> None:
    """Write the trace and both studies."""
    folder.mkdir(parents=True, exist_ok=True)
    write_long_trace(folder / "long.trace", -(-LOOKUPS // (LAYERS * TOP_K)))
    grids = {
        "plain": (range(8, 108), '"none"'),
        "mixed": (range(8, 108, 4), '["none", "previous-token", { predictor = "gate", count = [2, 4] }]'),
    }
    for name, (slots, prefetch) in grids.items():
        capacities = [f"{count}/layer" for count in slots]
        text = STUDY.format(capacities=capacities, policies=POLICIES, prefetch=prefetch, machines=MACHINES)
        (folder / f"{name}.toml").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
