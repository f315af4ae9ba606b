"""Routing drawn anew for every token is told from routing that remembers, popular experts or not."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.traces import make_trace
from tracekit.stats.independence import looks_independent
from tracekit.trace import Trace


def routed(path: Path, stay: float, zipf: float, tokens: int = 600, request: np.ndarray | None = None) -> Trace:
    """Top-2 of 16 at 3 layers: a token keeps each expert of the one before with probability `stay`."""
    rng = np.random.default_rng(5)
    popularity = np.log(1 / np.arange(1, 17) ** zipf)
    experts = np.empty((tokens, 3, 2), np.int64)
    for token in range(tokens):
        for layer in range(3):
            kept = [e for e in experts[token - 1, layer] if token and rng.random() < stay]
            order = np.argsort(-(popularity + rng.gumbel(size=16)))
            experts[token, layer] = (kept + [e for e in order if e not in kept])[:2]
    return make_trace(path, experts, num_experts=16, request=0 if request is None else request)


@pytest.mark.parametrize("zipf", [0.0, 1.2])
def test_memory_is_seen(tmp_path: Path, zipf: float) -> None:
    assert looks_independent(routed(tmp_path / "t.trace", 0.3, zipf)) is False


@pytest.mark.parametrize("zipf", [0.0, 1.2])
def test_popularity_is_no_memory(tmp_path: Path, zipf: float) -> None:
    assert looks_independent(routed(tmp_path / "t.trace", 0.0, zipf)) is True


def test_too_few_pairs_say_nothing(tmp_path: Path) -> None:
    assert looks_independent(routed(tmp_path / "a.trace", 0.3, 0.0, tokens=20)) is None
    assert looks_independent(routed(tmp_path / "b.trace", 0.3, 0.0, tokens=100, request=np.arange(100))) is None
