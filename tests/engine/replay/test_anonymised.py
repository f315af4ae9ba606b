"""An anonymised trace replays as its original under every policy that decides no tie by an expert's number."""

from typing import Any

import numpy as np
import pytest

from engine.replay.replay import replay
from policies.registry import EVICTION
from tests.helpers.traces import make_trace
from tracekit.edit import anonymise
from tracekit.trace import Trace

TOKENS, LAYERS, EXPERTS, TOP_K = 300, 3, 16, 2
PREFETCH = ("gate", "previous-token", "history", "oracle")  # popular and markov rank counts, which are often equal
FITTED = {"static", "learned"}  # read a file of the numbered experts


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace]:
    folder = tmp_path_factory.mktemp("anonymised")
    rng = np.random.default_rng(0)
    # No two scores of a row are equal, not in f16 either.
    logits = rng.permuted(np.tile(np.arange(EXPERTS, dtype=np.float16), (TOKENS, LAYERS, 1)), axis=2)
    logits[:, :, :4] += 5.5
    experts = np.argsort(-logits, axis=2)[:, :, :TOP_K]
    original = make_trace(
        folder / "original.trace",
        experts,
        num_experts=EXPERTS,
        request=np.repeat(np.arange(3), TOKENS // 3),
        weights=np.take_along_axis(logits, experts, axis=2),
        logits=logits,
        lookahead={1: np.roll(logits, 1, axis=2)[:, 1:]},
    )
    return original, anonymise(original, folder / "given-away.trace", np.random.default_rng(7))


def _counts(trace: Trace, eviction: str, prefetch: str) -> tuple[Any, ...]:
    tables = {"cache": {"capacity": "5/layer"}, "eviction": {"policy": eviction}, "prefetch": {"predictor": prefetch}}
    result = replay(trace, tables, bounds=False)
    return result.lookups, result.hits, result.hits_by, result.phases


@pytest.mark.parametrize("eviction", sorted(EVICTION.keys() - FITTED))
def test_evictions(pair: tuple[Trace, Trace], eviction: str) -> None:
    original, given = pair
    assert not np.array_equal(original.experts, given.experts)
    found = _counts(original, eviction, "none")
    assert found == _counts(given, eviction, "none") and found[1] > 0


@pytest.mark.parametrize("prefetch", PREFETCH)
def test_prefetchers(pair: tuple[Trace, Trace], prefetch: str) -> None:
    original, given = pair
    assert _counts(original, "lru", prefetch) == _counts(given, "lru", prefetch)
