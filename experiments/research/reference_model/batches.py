"""Training batches as a pure function of (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from experiments.demo.stdlib_text import DOMAINS, Domain

Streams = Mapping[Domain, npt.NDArray[np.uint16]]

# Code is most of the text; prose and tables are drawn more often than their size, so that each is learned.
MIXTURE: dict[Domain, float] = {"prose": 0.3, "code": 0.5, "tables": 0.2}


def batch(streams: Streams, seed: int, step: int, sequences: int, length: int) -> torch.Tensor:
    """Token windows [sequences, length + 1] of a step: a domain by `MIXTURE`, then a place in its stream."""
    rng = np.random.default_rng([seed, step])
    domains = rng.choice(len(DOMAINS), size=sequences, p=[MIXTURE[domain] for domain in DOMAINS])
    windows = np.empty((sequences, length + 1), dtype=np.int64)
    for row, chosen in enumerate(domains):
        stream = streams[DOMAINS[int(chosen)]]
        start = int(rng.integers(len(stream) - length))
        windows[row] = stream[start : start + length + 1]
    return torch.from_numpy(windows)
