"""Routing drawn from a prior: as local as told, by the project's own figures of a trace, and marked as drawn."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.curves.stack_curve import StackCurve, lru_curve
from tests.helpers.priors import expected_overlap, locality, only
from tracekit.caution import MARK
from tracekit.errors import TraceError
from tracekit.priors import LEVELS, Locality, family_names, gate, is_prior, load_family, prior_trace, prior_traces
from tracekit.rows import DECODE, PREFILL, UNUSED
from tracekit.stats import describe
from tracekit.trace import Trace


def draw(folder: Path, one: Locality, experts: int = 128, top_k: int = 8, layers: int = 3, **asked: Any) -> Trace:
    """A trace of a locality, under a name of its own."""
    path = folder / f"{len(list(folder.iterdir()))}.trace"
    return prior_trace(path, [experts] * layers, top_k, **{"tokens": 400, "family": only(one), **asked})


@pytest.mark.parametrize(
    "one",
    [
        locality(),
        locality(fast=0.5, fast_tokens=1.0),
        locality(slow=0.4, fast=0.3),
        locality(popularity=0.3, topic=0.2, slow=0.1, fast=0.1),
    ],
    ids=["none", "fast", "both", "all"],
)
def test_neighbours_share_what_their_correlation_says(tmp_path: Path, one: Locality) -> None:
    """The closed form is for ever so many experts; 128 are within a few percent of it."""
    trace = draw(tmp_path, one, tokens=500, layers=12)
    found = describe(trace)
    assert found.overlap == pytest.approx(expected_overlap(one.correlation(1), 128, 8), abs=0.02)
    experts = trace.experts
    for lag in (4, 20):
        shared = (experts[lag:, :, :, None] == experts[:-lag, :, None, :]).any(axis=3).mean()
        assert shared == pytest.approx(expected_overlap(one.correlation(lag), 128, 8), abs=0.02)


def test_requests_share_popularity_alone(tmp_path: Path) -> None:
    """Tokens of two requests correlate by popularity; a topic makes neighbours alike and other requests not."""
    for one in (locality(popularity=0.4), locality(topic=0.4), locality(popularity=0.2, topic=0.2)):
        trace = draw(tmp_path, one, tokens=1_600, requests=8)
        experts, length = trace.experts, 200
        shared = (experts[length:, :, :, None] == experts[:-length, :, None, :]).any(axis=3).mean()
        assert shared == pytest.approx(expected_overlap(one.popularity, 128, 8), abs=0.03)
        assert describe(trace).overlap == pytest.approx(expected_overlap(0.4, 128, 8), abs=0.03)


def test_the_first_and_last_layer_differ_and_layers_share_nothing(tmp_path: Path) -> None:
    trace = draw(tmp_path, locality(fast=0.6, ends=(0.0, 0.5)), tokens=1_000)
    experts = trace.experts
    same = (experts[1:, :, :, None] == experts[:-1, :, None, :]).any(axis=3).mean(axis=(0, 2))
    correlation = locality(fast=0.6).correlation(1)
    expected = [expected_overlap(factor * correlation, 128, 8) for factor in (0.0, 1.0, 0.5)]
    assert same == pytest.approx(expected, abs=0.025)
    across = (experts[:, 1:, :, None] == experts[:, :-1, None, :]).any(axis=3).mean()
    assert across == pytest.approx(8 / 128, abs=0.02)


def test_choices_are_the_highest_scores(tmp_path: Path) -> None:
    """The compiled stream against the model written out with numpy."""
    one, shape, top_k = locality(popularity=0.2, topic=0.1, slow=0.2, fast=0.2), (2, 11), 3
    drawn = gate.Gate(one, [11, 11], top_k, seed=5)
    drawn.begin()
    found = drawn.next(50)
    rng = np.random.default_rng(5)
    fixed = np.sqrt(0.2) * rng.standard_normal(shape)
    fixed = fixed + np.sqrt(0.1) * rng.standard_normal(shape)
    slow, fast = rng.standard_normal((2, *shape), dtype=np.float32).astype(np.float64)
    for token in range(50):
        new = rng.standard_normal((3, *shape), dtype=np.float32)
        slow = np.exp(-1 / 20) * slow + np.sqrt(1 - np.exp(-2 / 20)) * new[0]
        fast = np.exp(-1 / 2) * fast + np.sqrt(1 - np.exp(-1.0)) * new[1]
        scores = fixed + np.sqrt(0.2) * slow + np.sqrt(0.2) * fast + np.sqrt(0.3) * new[2]
        assert found[token].tolist() == np.argsort(-scores, axis=1)[:, :top_k].tolist()


@pytest.mark.parametrize("name", family_names())
def test_more_locality_is_never_fewer_hits(tmp_path: Path, name: str) -> None:
    """At every cache size: the share of hits of what is generated, and with prompts all that has to be loaded.

    Up to half a percent, what is left of chance: localities are mixed of the same noise.
    """
    family = load_family(name)
    for prompt in (0, 40):
        folder = tmp_path / str(prompt)
        folder.mkdir()
        asked: dict[str, Any] = {"tokens": 160, "prompt_tokens": prompt, "requests": 2, "folder": folder}
        traces = prior_traces([family.experts] * 6, family.top_k, **asked)
        assert tuple(traces) == LEVELS
        curves = [lru_curve(trace, "layer") for trace in traces.values()]
        for less, more in itertools.pairwise(curves):
            assert (_misses(less) >= _misses(more) - 0.005 * more.lookups.sum()).all()
            assert prompt or (_ratio(less) <= _ratio(more) + 0.005).all()
        assert _misses(curves[0])[family.experts // 4] > _misses(curves[2])[family.experts // 4]


def _misses(curve: StackCurve) -> np.ndarray:
    """By cache size, of both phases."""
    found: np.ndarray = (curve.lookups[:, None] - curve.hits).sum(axis=0)
    return found


def _ratio(curve: StackCurve) -> np.ndarray:
    """Of decode, by cache size."""
    found: np.ndarray = curve.hits[DECODE] / curve.lookups[DECODE]
    return found


def test_same_arguments_same_bytes_in_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = locality(topic=0.2, slow=0.2, fast=0.2)
    asked: dict[str, Any] = {"tokens": 70, "prompt_tokens": 33, "requests": 2}
    first, again = draw(tmp_path, one, **asked), draw(tmp_path, one, **asked)
    assert first.digest == again.digest != draw(tmp_path, one, seed=1, **asked).digest
    monkeypatch.setattr(gate, "BLOCK", 128 * 3 * 7)
    assert (draw(tmp_path, one, **asked).experts == first.experts).all()


def test_a_prompt_is_one_step_and_tokens_are_shared(tmp_path: Path) -> None:
    trace = draw(tmp_path, locality(slow=0.5), tokens=8, prompt_tokens=5, requests=3)
    assert trace.request.tolist() == [0] * 8 + [1] * 8 + [2] * 7
    assert trace.phase.tolist() == ([PREFILL] * 5 + [DECODE] * 3) * 2 + [PREFILL] * 5 + [DECODE] * 2
    assert trace.step.tolist() == [*[0] * 5, 1, 2, 3, *[4] * 5, 5, 6, 7, *[8] * 5, 9, 10]
    assert trace.position.tolist() == [*range(8), *range(8), *range(7)]
    assert Trace.open(trace.path, verify=True).tokens == 23


def test_layers_of_several_widths(tmp_path: Path) -> None:
    trace = prior_trace(tmp_path / "t.trace", [16, 4, 2], 3, tokens=100)
    for layer, experts in enumerate((16, 4, 2)):
        used = trace.experts[:, layer][trace.experts[:, layer] != UNUSED]
        assert used.max() < experts and len(used) == 100 * min(3, experts)


def test_it_never_passes_for_a_recording(tmp_path: Path) -> None:
    trace = prior_trace(tmp_path / "t.trace", [48] * 2, 4, tokens=80, level="high", seed=3, name="some-model")
    manifest = trace.manifest
    assert is_prior(trace) and manifest.source.startswith("synthetic")
    assert (manifest.model.id, manifest.seed, manifest.sampling["level"]) == ("prior/some-model", 3, "high")
    assert MARK in manifest.notes[0] and "nearest to top-4 of 48" in manifest.notes[0]
    assert MARK in describe(trace).warnings[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"tokens": 0}, "a prior of 0 tokens"),
        ({"prompt_tokens": -1}, "a prior of -1 prompt tokens"),
        ({"requests": 0}, "a prior of 0 requests"),
        ({"tokens": 5, "requests": 6}, "give 1 to 5"),
        ({"prompt_tokens": 2**30}, "prompt tokens"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, asked: dict[str, int], words: str) -> None:
    with pytest.raises(TraceError) as found:
        prior_trace(tmp_path / "t.trace", [8] * 4, 2, **{"tokens": 10, **asked})  # type: ignore[arg-type]
    assert words in str(found.value) and "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("experts", "top_k"), [([], 1), ([0], 1), ([4], 5), ([70_000], 2)])
def test_impossible_models_are_one_line(tmp_path: Path, experts: list[int], top_k: int) -> None:
    with pytest.raises(TraceError, match="a prior of"):
        prior_trace(tmp_path / "t.trace", experts, top_k, tokens=10)
