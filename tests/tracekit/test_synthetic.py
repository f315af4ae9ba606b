"""Each statistic that a synthetic trace states, measured on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracekit import synthetic
from tracekit.errors import TraceError
from tracekit.stats import describe
from tracekit.synthetic import Recipe, synthesize
from tracekit.trace import Trace


def make(tmp_path: Path, **fields: Any) -> Trace:
    return synthesize(tmp_path / f"{len(list(tmp_path.iterdir()))}.trace", Recipe(**fields))


def exponent(load: np.ndarray) -> float:
    """Of the power law through loads by rank, least squares in logarithms."""
    ranked = np.sort(load)[::-1]
    return float(-np.polyfit(np.log(np.arange(1, len(ranked) + 1)), np.log(ranked), 1)[0])


@pytest.mark.parametrize(("zipf", "top_k"), [(0.0, 2), (0.5, 4), (0.8, 2), (1.2, 1)])
def test_popularity(tmp_path: Path, zipf: float, top_k: int) -> None:
    trace = make(tmp_path, tokens=20_000, layers=2, experts=32, top_k=top_k, zipf=zipf)
    for layer in describe(trace).by_layer:
        assert exponent(np.array(layer.load)) == pytest.approx(zipf, abs=0.06)
        share = np.sort(layer.load)[::-1] / trace.tokens
        expected = Recipe(tokens=1, experts=32, top_k=top_k, zipf=zipf).inclusion()
        np.testing.assert_allclose(share, expected, atol=0.02)
    popular = [int(np.argmax(layer.load)) for layer in describe(trace).by_layer]
    assert zipf < 0.7 or len(set(popular)) == 2  # each layer has its own


@pytest.mark.parametrize("persistence", [0.0, 0.25, 0.6, 1.0])
def test_persistence(tmp_path: Path, persistence: float) -> None:
    recipe = Recipe(tokens=6000, layers=4, experts=32, top_k=2, zipf=0.7, persistence=persistence)
    trace = synthesize(tmp_path / "a.trace", recipe)
    stats = describe(trace)
    assert stats.overlap == pytest.approx(recipe.overlap(), abs=0.015)
    same = (trace.experts[1:] == trace.experts[:-1]).all(axis=2).mean()
    assert same == pytest.approx(persistence, abs=0.08 if persistence < 1 else 0)
    if persistence < 1:  # a single choice for good: no neighbour differs from any other token
        independent = any("independent from token to token" in warning for warning in stats.warnings)
        assert independent == (persistence == 0)


def test_domain_shifts(tmp_path: Path) -> None:
    """A shift shows as a divergence that shuffling does not give, and is not there without one."""
    steady = describe(make(tmp_path, tokens=8000, layers=2, experts=32, zipf=0.8)).domain_shift
    moved = describe(make(tmp_path, tokens=8000, layers=2, experts=32, zipf=0.8, shift_every=4000)).domain_shift
    assert steady is not None and moved is not None
    assert steady.halves < 2 * steady.halves_by_chance and steady.shuffles_as_far > 0.02
    assert moved.halves > 3 * moved.halves_by_chance_p95 > 0 and moved.shuffles_as_far < 0.02
    assert steady.part < 1.3 * steady.part_by_chance and moved.part > 3 * moved.part_by_chance
    trace = make(tmp_path, tokens=900, experts=64, zipf=0.5, shift_every=100, domains=3, persistence=1.0)
    first = trace.experts[::100]  # one choice per stretch: persistence is perfect, so only shifts change it
    assert (trace.experts.reshape(9, 100, -1) == first.reshape(9, 1, -1)).all()
    assert not (first[0] == first[1]).all()


def test_distinct_for_any_shape(tmp_path: Path) -> None:
    """Also when every expert is chosen, and with the most popular as popular as can be."""
    for fields in ({"experts": 4, "top_k": 4}, {"experts": 3, "top_k": 2, "zipf": 0.5}, {"experts": 300, "top_k": 8}):
        trace = make(tmp_path, tokens=500, layers=2, persistence=0.3, **fields)
        ordered = np.sort(trace.experts, axis=2)
        assert (np.diff(ordered.astype(int), axis=2) > 0).all()
        assert Trace.open(trace.path, verify=True).tokens == 500


def test_same_recipe_same_bytes_in_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"tokens": 300, "layers": 2, "persistence": 0.5, "zipf": 0.5, "shift_every": 70}
    one, again = make(tmp_path, **fields), make(tmp_path, **fields)
    assert one.digest == again.digest
    assert one.digest != make(tmp_path, **fields, seed=1).digest
    monkeypatch.setattr(synthetic, "_BLOCK", 4 * 37)
    pieces = make(tmp_path, **fields)
    assert len(pieces.manifest.shards) == 9
    same = (pieces.experts[1:] == pieces.experts[:-1]).all(axis=2)
    assert same[36].any() or same[73].any() or same[110].any()  # persistence across blocks


def test_it_says_what_it_is(tmp_path: Path) -> None:
    trace = make(tmp_path, tokens=100, zipf=0.5, request_tokens=25, expert_bytes=10, seed=7)
    manifest = trace.manifest
    assert (manifest.source, manifest.seed, manifest.requests) == ("synthetic", 7, 4)
    assert manifest.sampling["zipf"] == 0.5 and manifest.expert_bytes == [10] * 8
    assert "zipf 0.5" in manifest.notes[0]
    assert "synthetic" in describe(trace).warnings[0]
    assert trace.position.tolist() == list(range(25)) * 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 2**40}, "tokens is"),
        ({"zipf": -1.0}, "zipf is -1.0"),
        ({"zipf": float("nan")}, "zipf is nan"),
        ({"zipf": 3.0}, "lower zipf"),
        ({"top_k": 99}, "take more experts"),
        ({"persistence": 1.5}, "persistence is 1.5"),
        ({"shift_every": 0}, "shift_every is 0"),
        ({"shift_every": 10**30}, "shift_every is 10"),
        ({"request_tokens": 10**30}, "request_tokens is 10"),
        ({"expert_bytes": 0}, "expert_bytes is 0"),
        ({"layers": 4096, "experts": 65535}, "domains x layers x experts is 536862720, expected at most 67108864"),
        ({"experts": 10**9}, "expected"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_recipes(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        make(tmp_path, **({"tokens": 10} | fields))
    assert not list(tmp_path.iterdir())
