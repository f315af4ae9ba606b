"""A trace to give away: what is gone, and what replays as before."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.traces import make_trace, random_experts
from tracekit.edit import anonymise
from tracekit.errors import TraceError
from tracekit.manifest import ModelInfo
from tracekit.rows import UNUSED
from tracekit.trace import Trace

LAYERS, EXPERTS = 3, 12


@pytest.fixture
def secret(tmp_path: Path) -> Trace:
    rng = np.random.default_rng(0)
    experts = random_experts(rng, 40, LAYERS, 8, 3)
    experts[5, 1, 2] = UNUSED
    return make_trace(
        tmp_path / "secret.trace",
        experts,
        num_experts=[8, EXPERTS, 10],
        request=np.repeat([7, 3], 20),
        token_id=np.arange(40),
        weights=rng.random((40, LAYERS, 3)),
        logits=rng.random((40, LAYERS, EXPERTS)),
        lookahead={1: rng.random((40, LAYERS - 1, EXPERTS))},
        model=ModelInfo(id="/home/alice/models/m", revision="abc", family="test"),
        prompts_sha256="0" * 64,
        seed=11,
        notes=["sliced from alice.trace", "steps 0:2: 32 tokens in a row choose the same experts"],
    )


def test_what_is_gone(secret: Trace, tmp_path: Path) -> None:
    public = anonymise(secret, tmp_path / "public.trace", np.random.default_rng(5), model="a model")
    assert set(public.token_id.tolist()) == {-1} and public.request.tolist() == [0] * 20 + [1] * 20
    text = (public.path / "manifest.json").read_text()
    for word in ("alice", "0" * 64, "abc", 'seed": 11'):
        assert word not in text
    assert public.manifest.model == ModelInfo(id="a model", family="test")
    assert [note.split(":")[0] for note in public.manifest.notes] == ["steps 0", "anonymised"]
    nameless = anonymise(secret, tmp_path / "nameless.trace", np.random.default_rng(5))
    assert nameless.manifest.model.id == "anonymous" and np.array_equal(nameless.experts, public.experts)
    assert public.weights is not None and np.array_equal(public.weights, secret.weights)
    with pytest.raises(TraceError, match="exists"):
        anonymise(secret, public.path, np.random.default_rng(5))


def test_relabelled(secret: Trace, tmp_path: Path) -> None:
    """The numbers are others; which rows share an expert, and every expert's scores, are not."""
    public = Trace.open(anonymise(secret, tmp_path / "public.trace", np.random.default_rng(5)).path, verify=True)
    assert public.logits is not None and secret.logits is not None
    ahead, before = public.lookahead(1), secret.lookahead(1)
    assert ahead is not None and before is not None
    assert (public.experts != secret.experts).mean() > 0.5
    np.testing.assert_array_equal(public.experts == UNUSED, secret.experts == UNUSED)
    for layer in range(LAYERS):
        numbers = [trace.experts[:, layer].ravel().tolist() for trace in (secret, public)]
        pairs = set(zip(*numbers, strict=True))
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
        for old, new in pairs - {(UNUSED, UNUSED)}:
            np.testing.assert_array_equal(public.logits[:, layer, new], secret.logits[:, layer, old])
            if layer:
                np.testing.assert_array_equal(ahead[:, layer - 1, new], before[:, layer - 1, old])
